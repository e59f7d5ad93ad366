"""Lines of the log."""

from __future__ import annotations

import io
import math

from sft.common.data_records import DataReport, DroppedRow, RowProblem, SplitReport
from sft.common.run_records import BatchPlan, EvaluationResult, ModelFootprint, Precision, SampleAnswer
from sft.configuration.schema import QuantizationConfig
from sft.processes.live_line import LiveLine
from sft.reporting.log_lines import (
    before_and_after_lines,
    before_and_after_rows,
    data_lines,
    evaluation_line,
    evaluation_rows,
    live_parts,
    model_line,
    plan_line,
    progress_line,
    sample_lines,
)
from tests.support.preflight_records import preflight, row_source, source_report, train_report


def test_data_lines_count_every_row():
    report = preflight().report
    assert report.rows_read == report.rows_used + sum(report.rows_dropped.values()) == 15
    assert data_lines(report) == [
        "Training data: 10 rows = 6 used + 4 dropped; 1,200 tokens (40.0% supervised), longest row 32 tokens.",
        "  dropped: 4 rows (empty_answer): a.jsonl:3, a.jsonl:5, a.jsonl:8, ...",
        "  longer than max_seq_length: 3 rows; truncation removes the entire answer of 0, its end of 2, only prompt "
        "tokens of 1.",
        "  no trained end token: 2 rows, which do not teach the model when to stop.",
        "  the chat template omits the reasoning in 2 rows; it is not trained.",
        "  duplicates: 1 row: a.jsonl:7 repeats a.jsonl:2",
        "Validation data: 5 rows = 5 used + 0 dropped; 0 tokens (0% supervised), longest row 0 tokens.",
        "  leakage: 1 validation row is also in the training data: v.jsonl:4 is a.jsonl:1",
    ]


def test_data_lines_omit_what_did_not_happen():
    counts = {"rows_read": 6, "rows_used": 6, "rows_with_trained_end": 6, "tokens": 9, "supervised_tokens": 9}
    clean = SplitReport(sources=(source_report(),), **counts)
    assert data_lines(DataReport(train=clean)) == [
        "Training data: 6 rows = 6 used + 0 dropped; 9 tokens (100.0% supervised), longest row 0 tokens."
    ]


def test_log_lines_do_not_act_on_the_terminal():
    evil = DroppedRow(source=row_source(1, "\x1b]0;x\x07.jsonl"), problem=RowProblem(reason="r", message="m"))
    report = DataReport(train=train_report(rows_dropped={"r": 1}, dropped_examples=(evil,)))
    assert data_lines(report)[1] == "  dropped: 1 row (r): \\x1b]0;x\\x07.jsonl:1"
    lines = sample_lines([SampleAnswer(prompt="a\x1b[2Jb", before="\u202ec", after="d")])
    assert lines[1:3] == ["prompt     a\\x1b[2Jb", "before     \\u202ec"]


def test_evaluation_line_does_not_round_to_all():
    logs = {"eval_loss": 0.1, "eval_perplexity": 1.1, "eval_token_accuracy": 0.9997, "eval_sequence_accuracy": 0.99999}
    assert evaluation_line(5, logs, None).endswith("token accuracy 99.97%, sequence accuracy >99.99%")
    logs |= {"eval_expert_min_share": 0.0, "eval_expert_max_share": 0.625, "eval_dead_experts": 3}
    assert evaluation_line(5, logs, None).endswith("99.99%, experts chosen 0.0% to 62.5% (never: 3)")


def test_model_line_names_the_types_of_the_weights():
    size = ModelFootprint(
        num_parameters=2000, num_trainable_parameters=500, weight_bytes=1, hidden_size=1, num_layers=1, vocab_size=1
    )
    plain = model_line(size, "Some", Precision(weights="float32", mixed="no"), None)
    assert plain == "Model: Some, 2,000 parameters, 500 trainable (25.0%); float32 weights, no mixed precision."
    half = Precision(weights="bfloat16", mixed="bf16")
    assert model_line(size, "Some", half, QuantizationConfig(load_in_4bit=True)).endswith(
        "; 4-bit (nf4) base weights (bfloat16 where not quantized), float32 adapters, bfloat16 mixed precision."
    )
    assert "; 8-bit base weights (" in model_line(size, "Some", half, QuantizationConfig(load_in_8bit=True))


def test_plan_line():
    plan = BatchPlan(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, world_size=1, steps_per_epoch=3, total_steps=9
    )
    assert plan_line(plan, "cpu") == (
        "Plan: 2 rows per device x 4 accumulated x 1 process = 8 rows per step; 3 steps per epoch, 9 in total, on cpu."
    )


def test_before_and_after_lines_are_side_by_side():
    before = EvaluationResult(loss=2.0, perplexity=math.exp(2), token_accuracy=0.5, sequence_accuracy=0.0)
    after = EvaluationResult(loss=0.5, perplexity=math.exp(0.5), token_accuracy=0.9, sequence_accuracy=0.25)
    rows = before_and_after_rows(before, after)
    assert before_and_after_lines(rows) == [
        "                          before         after",
        "validation loss           2.0000        0.5000",
        "perplexity                  7.39          1.65",
        "token accuracy             50.0%         90.0%",
        "sequence accuracy           0.0%         25.0%",
    ]
    assert before_and_after_rows(None, after) == before_and_after_rows(before, None) == []


def test_sample_lines_shorten_long_answers():
    lines = sample_lines([SampleAnswer(prompt="p", before="b\nb", after="x" * 1000, reference="r")])
    assert lines[1:3] == ["prompt     p", "before     b / b"]
    assert len(lines[3]) < 330
    assert lines[4] == "reference  r"


def test_before_and_after_lines_keep_columns_apart_whatever_the_perplexity():
    before = EvaluationResult(loss=40.0, perplexity=math.exp(40), token_accuracy=0.0, sequence_accuracy=0.0)
    line = before_and_after_lines(before_and_after_rows(before, before))[2]
    assert line.split() == ["perplexity", "2.4e+17", "2.4e+17"]


def test_lines_of_a_terminal_fit_into_60_columns():
    logs = {
        "eval_loss": 0.5,
        "eval_perplexity": 1234567.0,
        "eval_token_accuracy": 0.9,
        "eval_sequence_accuracy": 0.5,
        "loss": 1.0,
        "learning_rate": 1e-4,
        "tokens_per_second": 3e5,
        "memory_allocated_bytes": 2**31,
    }
    before = logs | {"eval_loss": 0.75, "eval_token_accuracy": 1.0}
    rows = evaluation_rows(logs, before)
    assert rows[0] == ["loss", "0.5000", "-0.2500"]
    assert rows[2] == ["token accuracy", "90.0%", "-10.0%"]
    assert all(len(row) == 2 for row in evaluation_rows(logs, None))
    table = LiveLine(io.StringIO(), width=60).table("validation at step 50", ["", "value", "change"], rows)
    assert table[0] == "validation at step 50"
    assert table[1].split() == ["value", "change"]
    assert table[5].split() == ["token", "accuracy", "90.0%", "-10.0%"]
    assert max(map(len, table)) < 60
    assert not any("\x1b" in line for line in table)
    parts = live_parts(5, 250, "", 90.0, logs)
    assert parts == [
        "step   5/250   2%",
        "1:30 left",
        "loss 1.0000",
        "300,000 tokens/s",
        "2.0 GiB",
        "lr 1.00e-04",
    ]


def test_progress_lines_of_a_log_end_with_the_time_left():
    logs = {"loss": 1.0, "learning_rate": 1e-4}
    assert progress_line(5, 250, logs, 90.0) == "step   5/250  loss 1.0000  lr 1.00e-04  1:30 left"
    assert (
        progress_line(250, 250, logs, 0.0) == progress_line(250, 250, logs) == "step 250/250  loss 1.0000  lr 1.00e-04"
    )
