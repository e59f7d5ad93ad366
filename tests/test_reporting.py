"""What a person or a script reads."""

from __future__ import annotations

import json
import math

import pytest

from reporting.console import before_and_after_lines, data_lines, sample_lines
from reporting.curves import draw_curves
from reporting.measure import peak_memory_bytes, total_memory_bytes
from reporting.metrics_log import MetricsLog, json_safe, read_metrics
from sft_types import DataReport, DroppedRow, EvaluationResult, RowProblem, RowSource, SampleAnswer, SplitReport


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


def test_json_safe_has_no_number_that_json_lacks():
    value = {"a": math.nan, "b": [math.inf, 1.5], "c": (True, None, "x")}
    assert json.dumps(json_safe(value), allow_nan=False) == '{"a": null, "b": [null, 1.5], "c": [true, null, "x"]}'


def test_draw_curves_writes_a_picture_even_without_data(tmp_path):
    draw_curves([], tmp_path / "empty.png", "empty")
    events = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "grad_norm": 1.0} for s in range(1, 20)]
    draw_curves([*events, {"step": 19, "eval_loss": 0.3}], tmp_path / "full.png", "full")
    for name in ("empty.png", "full.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_data_lines_count_every_row():
    dropped = tuple(
        DroppedRow(
            source=RowSource(file="a.jsonl", line=line), problem=RowProblem(reason="empty_answer", message="is empty")
        )
        for line in (3, 5, 8, 9)
    )
    train = SplitReport(
        format_name="messages", files=("a.jsonl",), rows_read=10, rows_used=6, dropped=dropped, rows_truncated=2,
        rows_without_their_end=1, tokens=100, supervised_tokens=40, longest_row=30,
    )  # fmt: skip
    report = DataReport(train=train)
    assert report.rows_read == report.rows_used + sum(report.rows_dropped.values()) == 10
    assert data_lines(report) == [
        "Train rows: 10 read = 6 used + 4 dropped; 100 tokens, 40.0% trained, longest row 30.",
        "  dropped 4 empty_answer: a.jsonl:3, a.jsonl:5, a.jsonl:8, ...",
        "  cut to max_seq_length: 2 rows, 1 of them lost the end of the answer.",
    ]


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
