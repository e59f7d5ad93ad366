"""The preflight report as lines for a terminal."""

from __future__ import annotations

import dataclasses

from sft.common.data_records import DataReport, DroppedRow, RowPreview, RowProblem
from sft.common.machine_records import MemoryAdvice
from sft.reporting.preflight.text import preflight_lines
from tests.support import messages
from tests.support.preflight_records import GIB, preflight, row_source, segments, source_report, train_report


def test_preflight_lines_show_everything():
    assert preflight_lines(preflight(), colour=False) == [
        "",
        "Rows",
        "  train        10 read = 6 used + 4 dropped",
        "    dropped    4 empty_answer: a.jsonl:3, a.jsonl:5, a.jsonl:8, ...",
        "               a.jsonl:3: 'answer' is empty",
        "    duplicates 1: a.jsonl:7 repeats a.jsonl:2",
        "  validation   5 read = 5 used + 0 dropped",
        "    duplicates none",
        "    leakage    1: v.jsonl:4 is a.jsonl:1 in the training data",
        "",
        "Lengths",
        "  tokens       before truncation: median 20, 90% up to 40, 95% up to 60, 99% up to 80, longest 1,100",
        "  too long     3 rows (30.0%) longer than max_seq_length 32. Truncation removes all supervised",
        "               tokens of 0, the last ones of 2, only prompt tokens of 1",
        "  to keep      95% of the rows in full: max_seq_length 60; 99%: 80; all: 1,100",
        "",
        "Supervised",
        "  tokens       480 of 1,200 (40.0%)",
        "  end tokens   trained in 4 of 6 rows; the other 2 do not teach the model when to stop",
        "  note         the chat template omits the reasoning in 2 rows; it is not trained",
        "",
        "First rows, as the model sees them",
        "  Supervised text is between ⟦ and ⟧; ⏎ is a line break; escapes such as \\x1b are invisible characters.",
        "",
        "  row 1  a.jsonl:1  9 tokens, 4 supervised",
        "    user: hi⏎",
        "    ⟦hello<end>⟧",
        "",
        "  row 3  a.jsonl:3  dropped, empty_answer: 'answer' is empty",
        "",
        "Plan",
        "  per step     2 rows = 2 per device x 1 accumulated x 1 process, about 400 tokens (160 supervised)",
        "  per epoch    3 steps, 1,200 tokens (480 supervised); 9 steps in total",
        "  memory       weights       1.0 GiB",
        "               gradients     1.0 GiB",
        "               optimizer     2.0 GiB",
        "               activations   512 MiB",
        "               logits        256 MiB",
        "               slack         256 MiB",
        "               total         5.0 GiB  per device, of 10.0 GiB (50%)",
        "  disk         7.0 GiB needed, 100.0 GiB free: up to 2 checkpoints of 3.0 GiB, final model 1.0 GiB",
        "",
        "Environment",
        "  device       cuda:0 (Card), 10.0 GiB; 4 cores, 1 process",
        "  versions     python 3.12.0, torch 2.13.0",
        "",
        "OK: training would start.",
    ]


def test_preflight_lines_end_with_the_reasons():
    lines = preflight_lines(preflight(problems=("first " * 30, "second")), colour=False)
    start = lines.index(messages.PREFLIGHT_NOT_OK)
    assert lines[start + 1].startswith("  1. first first")
    assert lines[start + 2].startswith("     first")
    assert lines[-1] == "  2. second"
    assert not any(line.startswith("OK") for line in lines)


def test_preflight_lines_list_each_source():
    sources = (
        source_report(weight=0.5, rows_an_epoch=3, unused_columns=("id", "meta")),
        source_report(name="b.csv", format_name="alpaca", rows_read=1, rows_used=1, rows_dropped={}, rows_an_epoch=1),
    )
    lines = preflight_lines(preflight(report=DataReport(train=train_report(sources=sources))), colour=False)
    start = next(index for index, line in enumerate(lines) if line.startswith("    source"))
    assert lines[start : start + 3] == [
        "    source     a.jsonl (messages): 10 read = 6 used + 4 dropped; weight 0.5, 3 rows per epoch;",
        "               unused columns: id, meta",
        "    source     b.csv (alpaca): 1 read = 1 used + 0 dropped; weight 1, 1 row per epoch",
    ]
    assert "unused columns" not in " ".join(lines[start + 2 :])


def test_preflight_lines_report_what_does_not_fit():
    poor = dataclasses.replace(preflight().environment, device_memory_bytes=4 * GIB, free_disk_bytes=6 * GIB)
    advice = (
        MemoryAdvice(change="gradient_checkpointing: true", needed_bytes=3 * GIB, fits=True),
        MemoryAdvice(change="lora_config (r: 16, all-linear)", needed_bytes=GIB // 2, fits=True),
    )
    shown = preflight(environment=poor, memory_budget_bytes=4 * GIB, advice=advice)
    lines = preflight_lines(shown, colour=False)
    total = lines.index("               total         5.0 GiB  per device, of 4.0 GiB (125%)")
    assert lines[total + 1 : total + 4] == [
        "               DOES NOT FIT: 4.0 GiB may be used. Each of these changes would fit, cheapest first:",
        "                 3.0 GiB  gradient_checkpointing: true",
        "                 512 MiB  lora_config (r: 16, all-linear)",
    ]
    assert " ".join(lines).count(messages.DOES_NOT_FIT) == 2
    least = (dataclasses.replace(advice[0], fits=False),)
    text = "\n".join(preflight_lines(dataclasses.replace(shown, advice=least), colour=False))
    smallest = "                 3.0 GiB  smallest: gradient_checkpointing: true"
    assert f"{messages.NO_CHANGE_FITS}\n{smallest}" in text
    assert messages.DOES_NOT_FIT not in " ".join(preflight_lines(preflight(), colour=False))


def test_preflight_lines_without_a_plan_or_a_row_that_could_be_tokenized():
    empty = train_report(rows_used=0, tokens=0, supervised_tokens=0, lengths=None, rows_with_trained_end=0, notes={})
    shown = preflight(report=DataReport(train=empty), plan=None, memory=None, environment=None, previews=())
    lines = preflight_lines(shown, colour=False)
    assert "  tokens       no row could be tokenized" in lines
    assert "  none         no row is left to train on" in lines
    assert not {"Environment", "First rows, as the model sees them"} & set(lines)


def test_preflight_lines_of_a_stream_promise_no_epoch():
    lines = preflight_lines(preflight(report=DataReport(train=train_report(), is_complete=False)), colour=False)
    assert "  streamed     these counts cover only the first training rows" in lines
    assert "  total        9 steps" in lines
    assert not any(line.startswith("  per epoch") for line in lines)


def test_preflight_lines_do_not_act_on_the_terminal():
    evil = "\x1b]0;evil\x07\u202e\x9b2J"
    problem = RowProblem(reason="bad", message=evil)
    train = train_report(
        sources=(source_report(name=evil, unused_columns=(evil,)),),
        rows_dropped={"bad": 4},
        dropped_examples=(DroppedRow(source=row_source(1, evil), problem=problem),),
        duplicate_examples=((row_source(2, evil), row_source(1, evil)),),
        notes={evil: 1},
    )
    previews = (
        RowPreview(number=1, source=row_source(1, evil), segments=tuple(segments(evil, evil))),
        RowPreview(number=2, source=row_source(2, evil), problem=problem),
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
