"""What a person or a script reads."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from sft.common.data_records import (
    DataReport,
    DroppedRow,
    LengthReport,
    RowPreview,
    RowProblem,
    RowSource,
    Segment,
    SourceReport,
    SplitReport,
)
from sft.common.files import json_safe
from sft.common.machine_records import Environment, MemoryAdvice, MemoryEstimate
from sft.common.run_records import (
    BatchPlan,
    DistributedContext,
    EvaluationResult,
    ModelFootprint,
    Precision,
    SampleAnswer,
)
from sft.configuration.schema import QuantizationConfig
from sft.processes.device_memory import peak_memory_bytes, total_memory_bytes
from sft.processes.environment import num_usable_cores
from sft.reporting.curves import draw_curves
from sft.reporting.environment import gather_environment
from sft.reporting.log_lines import before_and_after_lines, data_lines, evaluation_line, model_line, sample_lines
from sft.reporting.metrics_log import MetricsLog, read_metrics
from sft.reporting.preflight.document import preflight_document, write_preflight
from sft.reporting.preflight.row_text import row_lines
from sft.reporting.preflight.text import Preflight, preflight_lines
from sft.reporting.summary import split_counts

GIB = 2**30
EMPTY_ANSWER = RowProblem(reason="empty_answer", message="'answer' is empty")


def place(line: int, file: str = "a.jsonl") -> RowSource:
    return RowSource(file=file, line=line)


def source_report(**changed) -> SourceReport:
    values = {
        "name": "a.jsonl",
        "format_name": "messages",
        "files": ("a.jsonl",),
        "rows_read": 10,
        "rows_used": 6,
        "rows_dropped": {"empty_answer": 4},
        "rows_an_epoch": 6,
    }
    return SourceReport(**(values | changed))


def train_report(**changed) -> SplitReport:
    """Ten rows read: four dropped, three too long of which two lose their end, one a repetition."""
    values = {
        "sources": (source_report(),),
        "rows_read": 10,
        "rows_used": 6,
        "rows_dropped": {"empty_answer": 4},
        "dropped_examples": tuple(DroppedRow(source=place(line), problem=EMPTY_ANSWER) for line in (3, 5, 8, 9)),
        "lengths": LengthReport(median=20, p90=40, p95=60, p99=80, longest=1100),
        "rows_too_long": 3,
        "rows_that_lose_the_answer": 0,
        "rows_that_lose_the_end": 2,
        "rows_that_lose_only_prompt": 1,
        "rows_with_trained_end": 4,
        "notes": {"thoughts_left_out": 2},
        "tokens": 1200,
        "supervised_tokens": 480,
        "longest_row": 32,
        "tokens_an_epoch": 1200,
        "supervised_tokens_an_epoch": 480,
        "duplicates": 1,
        "duplicate_examples": ((place(7), place(2)),),
    }
    return SplitReport(**(values | changed))


def validation_report() -> SplitReport:
    name = "v.jsonl"
    source = source_report(name=name, files=(name,), rows_read=5, rows_used=5, rows_dropped={})
    return SplitReport(sources=(source,), rows_read=5, rows_used=5, rows_with_trained_end=5)


def preflight(**changed) -> Preflight:
    """Everything there is to say, of a run that would start."""
    values = {
        "report": DataReport(
            train=train_report(),
            validation=validation_report(),
            leakage=1,
            leakage_examples=((place(4, "v.jsonl"), place(1)),),
        ),
        "previews": (
            RowPreview(
                number=1,
                source=place(1),
                num_tokens=9,
                num_supervised=4,
                segments=(Segment(text="user: hi\n", trained=False), Segment(text="hello<end>", trained=True)),
            ),
            RowPreview(number=3, source=place(3), problem=EMPTY_ANSWER),
        ),
        "plan": BatchPlan(
            per_device_train_batch_size=2, gradient_accumulation_steps=1, world_size=1, steps_per_epoch=3, total_steps=9
        ),
        "memory": MemoryEstimate(
            weights_bytes=GIB,
            gradients_bytes=GIB,
            optimizer_bytes=2 * GIB,
            activations_bytes=GIB // 2,
            logits_bytes=GIB // 4,
            slack_bytes=GIB // 4,
        ),
        "environment": Environment(
            device="cuda:0",
            device_name="Card",
            device_memory_bytes=10 * GIB,
            cpu_count=4,
            num_processes=1,
            versions={"python": "3.12.0", "torch": "2.13.0"},
            free_disk_bytes=100 * GIB,
            checkpoint_bytes=3 * GIB,
            checkpoints_kept=1,
            num_checkpoints=9,
            final_model_bytes=GIB,
        ),
        "problems": (),
        "max_seq_length": 32,
    }
    return Preflight(**(values | changed))


def test_metrics_log_goes_on_behind_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2})
    MetricsLog(path, resume_step=2).write(3, {"loss": 9.0})
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
    MetricsLog(path)
    assert read_metrics(path) == []


def test_read_metrics_passes_over_a_line_cut_by_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_draw_curves_writes_a_picture_even_without_data(tmp_path):
    draw_curves([], tmp_path / "empty.png", "empty")
    events = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "grad_norm": 1.0} for s in range(1, 20)]
    draw_curves([*events, {"step": 19, "eval_loss": 0.3}], tmp_path / "full.png", "full")
    for name in ("empty.png", "full.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_data_lines_count_every_row():
    report = preflight().report
    assert report.rows_read == report.rows_used + sum(report.rows_dropped.values()) == 15
    assert data_lines(report) == [
        "Train rows: 10 read = 6 used + 4 dropped; 1,200 tokens, 40.0% trained, longest row 32.",
        "  dropped 4 empty_answer: a.jsonl:3, a.jsonl:5, a.jsonl:8, ...",
        "  longer than max_seq_length: 3 rows; 0 lose all of the answer, 2 its end, 1 only prompt.",
        "  no end token is trained in 2 rows: they do not teach where to stop.",
        "  the chat template omits the reasoning in 2 rows; it is not trained.",
        "  duplicates: 1 row: a.jsonl:7 repeats a.jsonl:2.",
        "Validation rows: 5 read = 5 used + 0 dropped; 0 tokens, 0% trained, longest row 0.",
        "  leakage: 1 validation row among the training rows too: v.jsonl:4 is a.jsonl:1.",
    ]


def test_data_lines_are_silent_on_what_is_not_there():
    counts = {"rows_read": 6, "rows_used": 6, "rows_with_trained_end": 6, "tokens": 9, "supervised_tokens": 9}
    clean = SplitReport(sources=(source_report(),), **counts)
    assert data_lines(DataReport(train=clean)) == [
        "Train rows: 6 read = 6 used + 0 dropped; 9 tokens, 100.0% trained, longest row 0."
    ]


def test_lines_of_the_log_never_act_on_the_terminal():
    evil = DroppedRow(source=place(1, "\x1b]0;x\x07.jsonl"), problem=RowProblem(reason="r", message="m"))
    report = DataReport(train=train_report(rows_dropped={"r": 1}, dropped_examples=(evil,)))
    assert data_lines(report)[1] == "  dropped 1 r: \\x1b]0;x\\x07.jsonl:1"
    lines = sample_lines([SampleAnswer(prompt="a\x1b[2Jb", before="\u202ec", after="d")])
    assert lines[1:3] == ["prompt  a\\x1b[2Jb", "before  \\u202ec"]


def test_evaluation_line_does_not_round_to_all():
    logs = {"eval_loss": 0.1, "eval_perplexity": 1.1, "eval_token_accuracy": 0.9997, "eval_sequence_accuracy": 0.99999}
    assert evaluation_line(5, logs, None).endswith("tokens right 99.97%, answers right >99.99%")


def test_model_line_tells_the_types_of_the_weights():
    size = ModelFootprint(
        num_parameters=2000, num_trainable_parameters=500, weight_bytes=1, hidden_size=1, num_layers=1, vocab_size=1
    )
    plain = model_line(size, "Some", Precision(weights="float32", mixed="no"), None)
    assert plain == "Model: Some, 2,000 parameters, 500 trained (25.0%); weights float32, no mixed precision."
    half = Precision(weights="bfloat16", mixed="bf16")
    assert model_line(size, "Some", half, QuantizationConfig(load_in_4bit=True)).endswith(
        "; base weights in 4 bits (nf4), the rest of them bfloat16, adapters float32, mixed precision in bfloat16."
    )
    assert "; base weights in 8 bits, the rest" in model_line(size, "Some", half, QuantizationConfig(load_in_8bit=True))


def segments(*texts: str) -> list[Segment]:
    """Trained and not, in turn, the first not."""
    return [Segment(text=text, trained=number % 2 == 1) for number, text in enumerate(texts)]


def test_row_lines_mark_what_is_trained_without_colour():
    assert row_lines(segments("user\nhi\n", "ok\nbye<end>", "\n"), width=80, colour=False) == [
        "user⏎",
        "hi⏎",
        "⟦ok⏎",
        "bye<end>⟧⏎",
    ]


def test_row_lines_colour_what_is_trained_line_by_line():
    assert row_lines(segments("q ", "a\nb", "\n"), width=80, colour=True) == [
        "q \x1b[30;42ma⏎\x1b[0m",
        "\x1b[30;42mb\x1b[0m⏎",
    ]


def test_row_lines_close_the_bracket_before_the_line_breaks():
    assert row_lines(segments("", "a\n", "b"), width=80, colour=False) == ["⟦a⏎⟧", "b"]


def test_row_lines_keep_signs_in_the_data_apart_from_ours():
    assert row_lines(segments("⟦x⟧ ⏎ \x1b[1m"), width=80, colour=False) == ["\\u27e6x\\u27e7 \\u23ce \\x1b[1m"]


def test_row_lines_break_behind_a_space_and_count_wide_characters_twice():
    assert row_lines(segments("aaaa bbbb cccc"), width=10, colour=False) == ["aaaa bbbb ", "cccc"]
    assert row_lines(segments("你好你好你"), width=4, colour=False) == ["你好", "你好", "你"]


def test_row_lines_keep_both_ends_of_a_long_stretch():
    text = "".join(row_lines(segments("", "S" * 300 + "m" * 5000 + "E" * 195 + "<end>"), width=96, colour=False))
    assert text == "⟦" + "S" * 300 + " [... 5,000 characters ...] " + "E" * 195 + "<end>⟧"
    text = "".join(row_lines(segments("S" * 240 + "m" * 41 + "E" * 160), width=96, colour=False))
    assert text == "S" * 240 + " [... 41 characters ...] " + "E" * 160
    assert "".join(row_lines(segments("S" * 440), width=96, colour=False)) == "S" * 440


def test_row_lines_leave_out_the_middle_of_many_turns():
    text = "".join(row_lines(segments(*(f"<{n}>" for n in range(20))), width=500, colour=False))
    assert text == "<0>⟦<1>⟧<2>⟦<3>⟧ [... 12 stretches of text ...] <16>⟦<17>⟧<18>⟦<19>⟧"


def test_preflight_lines_tell_everything():
    assert preflight_lines(preflight(), colour=False) == [
        "",
        "Rows",
        "  train       10 read = 6 used + 4 dropped",
        "    dropped   4 empty_answer: a.jsonl:3, a.jsonl:5, a.jsonl:8, ...",
        "              a.jsonl:3: 'answer' is empty",
        "    repeated  1: a.jsonl:7 repeats a.jsonl:2",
        "  validation  5 read = 5 used + 0 dropped",
        "    repeated  none",
        "    leakage   1: v.jsonl:4 is a.jsonl:1 in the training rows",
        "",
        "Lengths",
        "  tokens      of whole rows: median 20, 90% up to 40, 95% up to 60, 99% up to 80, longest 1,100",
        "  too long    3 rows (30.0%) of more than max_seq_length 32. The cut takes all that is trained from",
        "              0, its end from 2, only prompt from 1",
        "  to keep     95% of the rows whole: max_seq_length 60; 99%: 80; all: 1,100",
        "",
        "Trained",
        "  tokens      480 of 1,200 (40.0%)",
        "  ends        an end token is trained in 4 of 6 rows; the other 2 do not teach where to stop",
        "  note        the chat template omits the reasoning in 2 rows; it is not trained",
        "",
        "First rows, as the model sees them",
        "  Trained is what is between ⟦ and ⟧; ⏎ is a line break, \\x1b and the like what cannot be seen.",
        "",
        "  row 1  a.jsonl:1  9 tokens, 4 trained",
        "    user: hi⏎",
        "    ⟦hello<end>⟧",
        "",
        "  row 3  a.jsonl:3  left out, empty_answer: 'answer' is empty",
        "",
        "Plan",
        "  a step      2 rows = 2 a device x 1 accumulated x 1 process; about 400 tokens, 160 of them trained",
        "  an epoch    3 steps, 1,200 tokens, 480 of them trained; 9 steps in all",
        "  memory      weights       1.0 GiB",
        "              gradients     1.0 GiB",
        "              optimizer     2.0 GiB",
        "              activations   512 MiB",
        "              logits        256 MiB",
        "              slack         256 MiB",
        "              total         5.0 GiB  a device, of 10.0 GiB (50%)",
        "  disk        7.0 GiB needed, 100.0 GiB free: 2 checkpoints at once of 3.0 GiB, the final model 1.0",
        "              GiB",
        "",
        "Environment",
        "  device      cuda:0 (Card), 10.0 GiB; 4 cores, 1 process",
        "  versions    python 3.12.0, torch 2.13.0",
        "",
        "Sound: a run would start.",
    ]


def test_preflight_lines_end_with_the_reasons():
    lines = preflight_lines(preflight(problems=("first " * 30, "second")), colour=False)
    start = lines.index("Not sound. A run would not start:")
    assert lines[start + 1].startswith("  1. first first")
    assert lines[start + 2].startswith("     first")
    assert lines[-1] == "  2. second"
    assert not any(line.startswith("Sound") for line in lines)


def test_preflight_lines_tell_the_sources_apart():
    sources = (
        source_report(weight=0.5, rows_an_epoch=3, unused_columns=("id", "meta")),
        source_report(name="b.csv", format_name="alpaca", rows_read=1, rows_used=1, rows_dropped={}, rows_an_epoch=1),
    )
    lines = preflight_lines(preflight(report=DataReport(train=train_report(sources=sources))), colour=False)
    assert [line for line in lines if "source" in line or "rows an epoch" in line] == [
        "    source    a.jsonl (messages): 10 read = 6 used + 4 dropped; weight 0.5, 3 rows an epoch; columns",
        "    source    b.csv (alpaca): 1 read = 1 used + 0 dropped; weight 1, 1 row an epoch",
    ]
    assert "              not used: id, meta" in lines


def test_preflight_lines_say_what_does_not_fit():
    poor = dataclasses.replace(preflight().environment, device_memory_bytes=4 * GIB, free_disk_bytes=6 * GIB)
    advice = (
        MemoryAdvice(change="gradient_checkpointing: true", needed_bytes=3 * GIB, fits=True),
        MemoryAdvice(change="lora_config (r: 16, all-linear)", needed_bytes=GIB // 2, fits=True),
    )
    shown = preflight(environment=poor, memory_budget_bytes=4 * GIB, advice=advice)
    lines = preflight_lines(shown, colour=False)
    total = lines.index("              total         5.0 GiB  a device, of 4.0 GiB (125%)")
    assert lines[total + 1 : total + 4] == [
        "              MORE THAN THERE IS: 4.0 GiB may be used. Each of these would fit, the cheapest first:",
        "                3.0 GiB  gradient_checkpointing: true",
        "                512 MiB  lora_config (r: 16, all-linear)",
    ]
    assert " ".join(lines).count("MORE THAN THERE IS") == 2
    least = (dataclasses.replace(advice[0], fits=False),)
    text = "\n".join(preflight_lines(dataclasses.replace(shown, advice=least), colour=False))
    assert "No change of the settings fits.\n                3.0 GiB  the least: gradient_checkpointing: true" in text
    assert "MORE THAN THERE IS" not in " ".join(preflight_lines(preflight(), colour=False))


def test_preflight_lines_without_a_plan_or_a_row_that_could_be_tokenized():
    empty = train_report(rows_used=0, tokens=0, supervised_tokens=0, lengths=None, rows_with_trained_end=0, notes={})
    shown = preflight(report=DataReport(train=empty), plan=None, memory=None, environment=None, previews=())
    lines = preflight_lines(shown, colour=False)
    assert "  tokens      no row could be tokenized" in lines
    assert "  none        no row is left to train on" in lines
    assert not {"Environment", "First rows, as the model sees them"} & set(lines)


def test_preflight_lines_of_a_stream_promise_no_epoch():
    lines = preflight_lines(preflight(report=DataReport(train=train_report(), is_complete=False)), colour=False)
    assert "  streamed    these are the counts of the first training rows alone" in lines
    assert "  in all      9 steps" in lines
    assert not any(line.startswith("  an epoch") for line in lines)


def test_preflight_lines_let_nothing_from_outside_act_on_the_terminal():
    evil = "\x1b]0;evil\x07\u202e\x9b2J"
    problem = RowProblem(reason="bad", message=evil)
    train = train_report(
        sources=(source_report(name=evil, unused_columns=(evil,)),),
        rows_dropped={"bad": 4},
        dropped_examples=(DroppedRow(source=place(1, evil), problem=problem),),
        duplicate_examples=((place(2, evil), place(1, evil)),),
        notes={evil: 1},
    )
    previews = (
        RowPreview(number=1, source=place(1, evil), segments=tuple(segments(evil, evil))),
        RowPreview(number=2, source=place(2, evil), problem=problem),
    )
    environment = dataclasses.replace(preflight().environment, device_name=evil, versions={evil: evil})
    shown = preflight(report=DataReport(train=train), previews=previews, problems=(evil,), environment=environment)
    lines = preflight_lines(shown, colour=False)
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\n"} & set("".join(lines))
    assert "".join(lines).count("\\x1b]0;evil\\x07\\u202e\\x9b2J") >= 10
    coloured = "".join(preflight_lines(shown, colour=True))
    for ours in ("\x1b[1m", "\x1b[0m", "\x1b[30;42m", "\x1b[32;1m", "\x1b[31;1m"):
        coloured = coloured.replace(ours, "")
    assert "\x1b" not in coloured


def test_preflight_document_holds_what_scripts_ask_for():
    document = preflight_document(preflight())
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["sound"], document["problems"]) == (True, [])
    assert (document["rows_read"], document["rows_used"], document["rows_dropped"]) == (15, 11, {"empty_answer": 4})
    assert (document["duplicates"], document["leakage"], document["supervised_share"]) == (1, 1, 0.4)
    assert document["lengths"] == {
        "median": 20,
        "p90": 40,
        "p95": 60,
        "p99": 80,
        "max": 1100,
        "max_seq_length": 32,
        "too_long": 3,
        "lose_answer": 0,
        "lose_end": 2,
        "lose_only_prompt": 1,
        "keep_95": 60,
        "keep_99": 80,
        "keep_100": 1100,
    }
    whole, dropped = document["samples"]
    assert whole == {
        "number": 1,
        "source": "a.jsonl:1",
        "tokens": 9,
        "supervised_tokens": 4,
        "truncated": False,
        "segments": [{"text": "user: hi\n", "trained": False}, {"text": "hello<end>", "trained": True}],
    }
    assert dropped["problem"] == {"reason": "empty_answer", "message": "'answer' is empty"}
    plan = document["plan"]
    assert (plan["global_batch_size"], plan["steps_per_epoch"], plan["total_steps"]) == (2, 3, 9)
    assert (plan["tokens_per_epoch"], plan["supervised_tokens_per_epoch"]) == (1200, 480)
    assert plan["memory"]["total_bytes"] == 5 * GIB
    assert (plan["memory"]["slack_bytes"], plan["memory"]["advice"]) == (GIB // 4, [])
    assert document["environment"]["needed_disk_bytes"] == 7 * GIB


def test_preflight_document_of_an_unsound_run():
    document = preflight_document(preflight(problems=("why",), plan=None, memory=None, environment=None))
    assert (document["sound"], document["problems"], document["plan"]) == (False, ["why"], None)


def test_write_preflight_makes_the_folder_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "preflight.json"
    write_preflight({"a": "é \x1b"}, path)
    write_preflight({"a": 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["preflight.json"]


def test_split_counts_are_ready_for_json():
    counts = split_counts(train_report())
    assert json.loads(json.dumps(json_safe(counts)))["sources"][0]["rows_an_epoch"] == 6
    assert {name: counts[name] for name in ("format", "files", "rows_read", "rows_used", "rows_dropped")} == {
        "format": "messages",
        "files": ["a.jsonl"],
        "rows_read": 10,
        "rows_used": 6,
        "rows_dropped": {"empty_answer": 4},
    }
    assert (counts["rows_too_long"], counts["rows_that_lose_the_end"], counts["duplicates"]) == (3, 2, 1)
    assert counts["duplicate_examples"] == [["a.jsonl:7", "a.jsonl:2"]]


@pytest.mark.parametrize(
    ("kept", "written", "at_once"),
    [(2, 10, 3), (2, 3, 3), (2, 2, 2), (None, 10, 10), (1, 0, 0)],
)
def test_environment_needs_room_for_one_checkpoint_more_than_it_keeps(kept, written, at_once):
    environment = dataclasses.replace(preflight().environment, checkpoints_kept=kept, num_checkpoints=written)
    assert environment.checkpoints_at_once == at_once
    assert environment.needed_disk_bytes == at_once * 3 * GIB + GIB


@pytest.mark.parametrize(("trained", "saved"), [(1000, 2000), (100, 400)])
def test_gather_environment_reckons_what_is_saved(tmp_path, trained, saved):
    footprint = ModelFootprint(
        num_parameters=1000,
        num_trainable_parameters=trained,
        weight_bytes=2000,
        hidden_size=1,
        num_layers=1,
        vocab_size=1,
    )
    environment = gather_environment(
        DistributedContext(world_size=3),
        footprint,
        output_dir=str(tmp_path / "not" / "there"),
        optimizer_bytes=64.0,
        checkpoints_kept=2,
        num_checkpoints=4,
    )
    assert (environment.final_model_bytes, environment.checkpoint_bytes) == (saved, saved + 64)
    assert environment.num_processes == 3
    assert environment.cpu_count == num_usable_cores()
    assert environment.device_name
    assert environment.versions["python"].startswith("3.")
    assert 0 < environment.free_disk_bytes < 2**60
    assert not (tmp_path / "not").exists()


def test_before_and_after_lines_stand_side_by_side():
    before = EvaluationResult(loss=2.0, perplexity=math.exp(2), token_accuracy=0.5, sequence_accuracy=0.0)
    after = EvaluationResult(loss=0.5, perplexity=math.exp(0.5), token_accuracy=0.9, sequence_accuracy=0.25)
    lines = before_and_after_lines(before, after)
    assert lines[1].split() == ["validation", "loss", "2.0000", "0.5000"]
    assert lines[4].split() == ["answers", "right", "0.0%", "25.0%"]
    assert before_and_after_lines(None, after) == []


def test_sample_lines_keep_long_answers_short():
    lines = sample_lines([SampleAnswer(prompt="p", before="b\nb", after="x" * 1000, reference="r")])
    assert lines[1:3] == ["prompt  p", "before  b / b"]
    assert len(lines[3]) < 330
    assert lines[4] == "data    r"


def test_memory_is_measured():
    assert 10**7 < peak_memory_bytes("cpu") < total_memory_bytes("cpu")


@pytest.mark.gpu
def test_memory_of_a_gpu_is_measured():
    assert total_memory_bytes("cuda:0") > 10**9


def test_before_and_after_lines_keep_columns_apart_whatever_the_perplexity():
    before = EvaluationResult(loss=40.0, perplexity=math.exp(40), token_accuracy=0.0, sequence_accuracy=0.0)
    line = before_and_after_lines(before, before)[2]
    assert line.split() == ["perplexity", "2.4e+17", "2.4e+17"]
