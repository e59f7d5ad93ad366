"""`--dry_run`: what it shows, writes and refuses, and that a real run refuses the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import messages
from tests.support.terminals import COLOUR, table_below, terminal_as_stdout

PLAIN = "User:\n{}\n\nAssistant:\n"
CONTRACT = {"rows_read", "rows_used", "rows_dropped", "duplicates", "leakage", "lengths", "supervised_share", "samples"}
CONTRACT |= {"plan", "problems"}


def write(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(start, start + count)]


def preflight(run) -> dict:
    return json.loads((run.output_dir / "preflight.json").read_text(encoding="utf-8"))


def test_dry_run_of_sound_data_exits_with_0_and_writes_the_contract(run_sft, tmp_path):
    train = write(tmp_path / "train.jsonl", pairs(20))
    run = run_sft("--dry_run", train_file=train, validation_file=write(tmp_path / "v.jsonl", pairs(4, 100)))
    assert run.status == 0, run.err
    found = preflight(run)
    assert set(found) >= CONTRACT
    assert found["problems"] == []
    assert (found["rows_read"], found["rows_used"], found["rows_dropped"]) == (24, 24, {})
    assert (found["duplicates"], found["leakage"]) == (0, 0)
    assert found["plan"]["global_batch_size"] == 4
    assert found["plan"]["total_steps"] == 5
    assert found["plan"]["rows_of_last_step"] == 4
    assert found["supervised_share"] == pytest.approx(found["train"]["supervised_tokens"] / found["train"]["tokens"])
    assert messages.PREFLIGHT_OK in run.out
    assert run.err == ""


@pytest.mark.parametrize(("width", "variables"), [(50, {}), (120, {"NO_COLOR": "1"})])
def test_dry_run_on_a_terminal_draws_plan_and_memory(run_sft, tmp_path, width, variables):
    train = write(tmp_path / "train.jsonl", pairs(20))
    log = tmp_path / "log"
    with terminal_as_stdout(width, **variables) as written:
        assert run_sft("--dry_run", f"--log_dir={log}", train_file=train).status == 0
    assert bool(COLOUR.search(written.text)) == (not variables)
    assert ("⟦" in written.text) == bool(variables)
    table = table_below(written.text, "Plan")
    assert table[1].split()[:3] == ["per", "step", "4"]
    assert max(map(len, table)) <= width
    memory = next(index for index, line in enumerate(table) if "memory per device" in line)
    plain = (log / "rank-0.log").read_text()
    assert messages.PREFLIGHT_OK in plain
    assert not COLOUR.search(plain)
    assert "─" not in plain
    total = next(line for line in plain.splitlines() if "per device, of" in line).split("total")[1].split()[:2]
    assert table[-1].split()[:3] == ["total", *total]
    assert memory


def test_dry_run_leaves_nothing_but_its_report(run_sft, tmp_path):
    run = run_sft("--dry_run", train_file=write(tmp_path / "train.jsonl", pairs(8)))
    assert [path.name for path in run.output_dir.iterdir()] == ["preflight.json"]


def test_dry_run_samples_mark_supervised_text(run_sft, tmp_path):
    train = write(tmp_path / "train.jsonl", pairs(20))
    run = run_sft("--dry_run", train_file=train)
    first = preflight(run)["samples"][0]
    assert first["source"] == f"{train}:1"
    assert first["segments"] == [
        {"text": "<|im_start|>user\nQuestion 0?<|im_end|>\n<|im_start|>assistant\n", "trained": False},
        {"text": "Answer 0.<|im_end|>", "trained": True},
        {"text": "\n", "trained": False},
    ]
    assert first["supervised_tokens"] < first["tokens"]
    assert "⟦Answer 0.<|im_end|>⟧" in run.out


def test_dry_run_shows_the_requested_rows(run_sft, tmp_path):
    rows = [*pairs(4), {"question": "q", "answer": ""}, *pairs(15, 4)]
    train = write(tmp_path / "train.jsonl", rows)
    run = run_sft("--dry_run", "--show_rows", "17,5", train_file=train, on_bad_rows="skip")
    assert run.status == 0, run.err
    dropped, shown = preflight(run)["samples"]
    assert (dropped["source"], dropped["segments"]) == (f"{train}:5", [])
    assert dropped["problem"]["reason"] == "empty_answer"
    assert (shown["number"], shown["source"]) == (17, f"{train}:17")
    assert {"text": "Answer 15.<|im_end|>", "trained": True} in shown["segments"]


def test_dry_run_reports_exactly_the_planted_faults(run_sft, tmp_path):
    rows = [
        *pairs(60),
        "{broken",  # line 61
        {"question": "no answer", "answer": ""},  # 62
        {"question": "null", "answer": None},  # 63
        {"question": "a number", "answer": 4},  # 64
        {"question": "half a character", "answer": "\ud800"},  # 65
        {"question": "QUESTION   3?", "answer": "answer 3."},  # 66: row 4 again
        {"question": "long prompt " * 80, "answer": "x"},  # 67: loses its answer
        {"question": "long", "answer": "long answer " * 80},  # 68: loses its end
        {"answer": "no question"},  # 69
    ]
    train = write(tmp_path / "train.jsonl", rows)
    held = [*pairs(5, 200), {"question": "Question 7?", "answer": "Answer 7."}]
    run = run_sft(
        "--dry_run",
        train_file=train,
        validation_file=write(tmp_path / "v.jsonl", held),
        on_bad_rows="skip",
        max_bad_row_share=0.2,
    )
    found = preflight(run)
    expected = {
        "invalid_json": 1,
        "empty_answer": 2,
        "wrong_type": 1,
        "not_unicode": 1,
        "nothing_left_after_truncation": 1,
        "missing_field": 1,
    }
    assert found["rows_dropped"] == expected
    assert found["rows_read"] == 75 == found["rows_used"] + sum(expected.values())
    assert found["duplicates"] == 1
    assert found["train"]["duplicate_examples"] == [[f"{train}:66", f"{train}:4"]]
    assert found["leakage"] == 1
    lengths = found["lengths"]
    assert (lengths["too_long"], lengths["lose_answer"], lengths["lose_end"], lengths["lose_only_prompt"]) == (
        2,
        1,
        1,
        0,
    )
    places = {row["source"]: row["reason"] for row in found["train"]["dropped_examples"]}
    assert places == {
        f"{train}:61": "invalid_json",
        f"{train}:62": "empty_answer",
        f"{train}:63": "empty_answer",
        f"{train}:64": "wrong_type",
        f"{train}:65": "not_unicode",
        f"{train}:67": "nothing_left_after_truncation",
        f"{train}:69": "missing_field",
    }
    assert run.status == 2
    (problem,) = found["problems"]
    assert problem.startswith(messages.ALSO_TRAINED.format(rows="1 of 6"))


END_IS_NEVER_WRITTEN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
UNSOUND = {
    "bad rows": (
        {},
        [*pairs(9), {"question": "q", "answer": ""}],
        "1 of 10 train rows cannot be used (1 empty_answer)",
    ),
    "too many dropped": (
        {"on_bad_rows": "skip"},
        [*pairs(8), *[{"question": "q", "answer": ""}] * 2],
        "2 of 10 train rows (20.0%) are dropped (2 empty_answer): more than max_bad_row_share 0.1 allows",
    ),
    "no supervised token": (
        {"on_bad_rows": "skip"},
        [{"question": "q", "answer": ""}] * 3,
        "none of its 3 rows can be used, so there is no supervised token: 3 empty_answer",
    ),
    "too long": (
        {"on_too_long": "error"},
        [*pairs(9), {"question": "q", "answer": "many words " * 60}],
        "1 of 10 train rows are longer than max_seq_length 64, and on_too_long is error",
    ),
    "end never written": (
        {"chat_template": END_IS_NEVER_WRITTEN},
        pairs(4),
        "the chat template writes no known end token",
    ),
    "end always cut": (
        {"max_seq_length": 22},
        [{"question": "q", "answer": "many words " * 60}] * 4,
        "truncates it in all",
    ),
    "warm-up longer than the run": ({"warmup_steps": 5}, pairs(20), "the learning rate never reaches its peak"),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_a_run_refuses_what_a_dry_run_reports(run_sft, tmp_path, fault):
    settings, rows, expected = UNSOUND[fault]
    train = write(tmp_path / "train.jsonl", rows)
    dry_run = run_sft("--dry_run", train_file=train, output_dir=str(tmp_path / "dry"), **settings)
    assert dry_run.status == 2
    found = preflight(dry_run)
    assert any(expected in problem for problem in found["problems"]), found["problems"]
    assert messages.PREFLIGHT_NOT_OK in dry_run.out
    run = run_sft(train_file=train, output_dir=str(tmp_path / "real"), **settings)
    assert run.status == 2
    assert expected in run.err
    assert "Traceback" not in run.err
    assert not run.output_dir.exists()


def test_add_end_token_makes_a_template_without_an_end_sound(run_sft, tmp_path):
    train = write(tmp_path / "train.jsonl", pairs(8))
    run = run_sft("--dry_run", train_file=train, chat_template=END_IS_NEVER_WRITTEN, add_end_token=True)
    assert run.status == 0, run.out
    assert preflight(run)["samples"][0]["segments"][-1]["text"].endswith("<|im_end|>")


def test_allowed_leakage_is_counted_and_no_problem(run_sft, tmp_path):
    train = write(tmp_path / "train.jsonl", pairs(10))
    held = write(tmp_path / "v.jsonl", [*pairs(3, 50), *pairs(1)])
    run = run_sft("--dry_run", train_file=train, validation_file=held, max_leakage_share=0.25)
    assert run.status == 0, run.out
    assert preflight(run)["leakage"] == 1


def test_dry_run_plans_for_the_processes_of_the_run(run_sft, tmp_path):
    run = run_sft("--dry_run", train_file=write(tmp_path / "train.jsonl", pairs(20)), num_gpus=2)
    assert preflight(run)["plan"]["global_batch_size"] == 8


def test_dry_run_reports_rows_that_do_not_exist(run_sft, tmp_path):
    run = run_sft("--dry_run", "--show_rows=2,999", train_file=write(tmp_path / "train.jsonl", pairs(3)))
    assert messages.ROW_NOT_SHOWN.format(row=999, rows=3) in run.out
    assert [sample["number"] for sample in preflight(run)["samples"]] == [2]


def test_dry_run_that_fails_leaves_no_earlier_report(run_sft, tmp_path):
    run_sft("--dry_run", train_file=write(tmp_path / "train.jsonl", pairs(3)))
    run = run_sft("--dry_run", train_file=write(tmp_path / "train.jsonl", [{"no": "format"}]))
    assert run.status == 2
    assert not (run.output_dir / "preflight.json").exists()


def test_a_source_without_a_row_per_epoch_is_a_problem(run_sft, tmp_path):
    first, second = write(tmp_path / "a.jsonl", pairs(9)), write(tmp_path / "b.jsonl", pairs(9, 50))
    run = run_sft("--dry_run", train_file=None, datasets=f"[{first}, {{path: {second}, weight: 0.01}}]")
    assert run.status == 2
    (problem,) = preflight(run)["problems"]
    assert problem.startswith(f"datasets[1].weight: {messages.NO_ROW_PER_EPOCH.format(weight=0.01, rows=9)}")


def test_what_is_odd_is_a_note_of_the_dry_run_and_in_the_log_of_a_run(run_sft, tmp_path):
    settings = {
        "train_file": write(tmp_path / "train.jsonl", pairs(21)),
        "validation_file": write(tmp_path / "v.jsonl", pairs(3, 100)),
        "eval_steps": 50,
        "save_strategy": "no",
        "save_total_limit": 7,
        "sample_prompts": "[]",
    }
    dry_run = run_sft("--dry_run", **settings)
    assert dry_run.status == 0
    notes = preflight(dry_run)["notes"]
    keys = [
        "save_total_limit has no effect",
        "eval_steps: 50",
        "validation_file: only 3",
        "per_device_train_batch_size: the last step",
        messages.MORE_ROWS_A_STEP.partition("{")[0],
    ]
    assert len(notes) == len(keys)
    assert preflight(dry_run)["plan"]["rows_of_last_step"] == 1
    assert messages.LAST_STEP.format(steps=6, rows=1) in dry_run.out
    assert all(any(key in note for note in notes) for key in keys)
    run = run_sft(**settings)
    assert run.status == 0
    assert all(note in run.out for note in notes if keys[-1] not in note)  # advice, which a run does not repeat
    assert run.out.count(messages.NOTE) == 3


def test_a_run_that_does_not_fit_into_memory_or_on_the_disk_has_notes(run_sft, tmp_path, monkeypatch):
    from sft.reporting import environment

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage)
    run = run_sft("--dry_run", train_file=write(tmp_path / "train.jsonl", pairs(20)), memory_budget_gib=0.01)
    memory, disk, _ = preflight(run)["notes"]
    assert messages.LISTS_CHANGES in memory
    assert messages.DISK_NEEDED.format(size="0 MiB") in disk
    assert run.status == 0
