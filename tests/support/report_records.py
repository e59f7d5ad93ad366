"""Invented records of runs, with the changes of a test."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from sft.common.data_records import (
    DataReport,
    DroppedRow,
    LengthReport,
    RowProblem,
    RowSource,
    SourceReport,
    SplitReport,
)
from sft.common.run_records import BatchPlan, EvaluationResult, TrainingResult
from sft.reporting.report.records import AnsweredPrompt, Machine, ReportRecords, StepAnswer

GIB = 2**30
UNTRUSTED = "<script>alert(1)</script> & \"quotes' ]]> --> `|` \x1b[31m\x00 \ud800 \u202e ```\n# head"
"""Text that acts on a page, or in Markdown, unless it is escaped."""


def split(name="train.jsonl", rows=100, **changed):
    """Rows that leave nothing to be wished for."""
    source = SourceReport(
        name=name,
        format_name="messages",
        files=(name,),
        rows_read=rows,
        rows_used=rows,
        rows_dropped={},
        rows_an_epoch=rows,
    )
    lengths = LengthReport(
        median=20, p90=30, p95=35, p99=40, longest=45, bin_edges=(10, 20, 30, 46), bin_counts=(40, 50, rows - 90)
    )
    values = {
        "sources": (source,),
        "rows_read": rows,
        "rows_used": rows,
        "lengths": lengths,
        "rows_with_trained_end": rows,
        "tokens": 2000,
        "supervised_tokens": 500,
        "longest_row": 45,
    }
    return SplitReport(**(values | changed))


def data(*, train=None, validation=None, has_validation=True, **changed):
    validation = (validation or split("validation.jsonl")) if has_validation else None
    return DataReport(train=train or split(), validation=validation, **changed)


def machine(**changed):
    values = {
        "device": "cpu",
        "device_name": "A processor",
        "device_memory_bytes": 16 * GIB,
        "num_cores": 4,
        "processes_here": 1,
        "system": "Linux",
        "versions": {"python": "3.12.0", "torch": "2.13.0+cpu"},
    }
    return Machine(**(values | changed))


def train_event(step, loss, **changed):
    values = {
        "step": step,
        "loss": loss,
        "learning_rate": 1e-3 / step,
        "grad_norm": 1.0,
        "tokens_per_second": 1000.0,
        "supervised_tokens_per_second": 250.0,
        "examples_per_second": 50.0,
        "memory_allocated_bytes": GIB,
        "peak_memory_bytes": 2 * GIB,
        "cpu_utilization": 0.9,
        "epoch": step / 50,
    }
    return values | changed


def evaluation(step, loss):
    return {
        "step": step,
        "eval_loss": loss,
        "eval_perplexity": 2.0,
        "eval_token_accuracy": 0.5,
        "eval_sequence_accuracy": 0.25,
    }


def with_experts(event, *, dead=1):
    """The evaluation of a model with experts in two of its layers."""
    layers = [
        {"layer": layer, "experts": 4, "max_share": 0.5, "min_share": 0.0 if dead else 0.125, "dead": dead}
        for layer in (1, 12)
    ]
    figures = {"max_share": 0.5, "min_share": layers[0]["min_share"]}
    named = {f"eval_expert_{name}": value for name, value in figures.items()}
    return event | named | {"eval_dead_experts": 2 * dead, "eval_expert_load": layers}


def falling(steps=100, every=5, first=3.0, last=0.5):
    """Training losses that fall in a straight line."""
    return [
        train_event(step, first + (last - first) * (step - every) / (steps - every))
        for step in range(every, steps + 1, every)
    ]


def in_order(*events):
    return sorted((event for group in events for event in group), key=lambda event: event["step"])


def result(*, before=3.0, after=1.0, **changed):
    def scores(loss):
        return loss and EvaluationResult(loss=loss, perplexity=2.0, token_accuracy=0.5, sequence_accuracy=0.25)

    values = {
        "status": "completed",
        "steps": 100,
        "epochs": 2.0,
        "loss": 1.2,
        "seconds": 125.0,
        "examples_per_second": 50.0,
        "tokens_per_second": 1000.0,
        "supervised_tokens_per_second": 250.0,
        "peak_memory_bytes": 2 * GIB,
        "memory_share": 0.125,
        "eval_before": scores(before),
        "eval_after": scores(after),
    }
    return TrainingResult(**(values | changed))


def prompts():
    answers = [(0, "Hm.", False), (50, "Paris, perhaps.", True), (100, "Paris.", True)]
    return (
        AnsweredPrompt(
            prompt="The capital of France?",
            reference="Paris.",
            answers=tuple(StepAnswer(step=step, text=text, ended=ended) for step, text, ended in answers),
        ),
    )


def records(**changed):
    """A run that learned, of 100 steps, evaluated before, at 25, at 50 and at 100."""
    values = {
        "name": "a-run",
        "status": "completed",
        "step": 100,
        "plan": BatchPlan(
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            world_size=1,
            steps_per_epoch=50,
            total_steps=100,
        ),
        "data": data(),
        "settings": {
            "model_name_or_path": "a/model",
            "output_dir": "out",
            "max_seq_length": 32,
            "lora_config": None,
            "sample_max_new_tokens": 8,
        },
        "settings_yaml": "model_name_or_path: a/model\noutput_dir: out\n",
        "given": {"model_name_or_path": "my.yaml:1"},
        "config_sha256": "c" * 64,
        "data_digests": {"train": "1" * 64, "validation": "2" * 64},
        "machine": machine(),
        "events": in_order(
            falling(), [evaluation(0, 3.0), evaluation(25, 1.01), evaluation(50, 1.005), evaluation(100, 1.0)]
        ),
        "prompts": prompts(),
        "command": "python sft_main.py --config_file my.yaml",
        "result": result(),
        "written_at": "2026-01-02 03:04:05 UTC",
    }
    return ReportRecords(**(values | changed))


def untrusted_records():
    """Changes for `records` that put untrusted text wherever a run can bring text."""
    bad = DroppedRow(
        source=RowSource(file=f"/data/{UNTRUSTED}", line=3), problem=RowProblem(reason=UNTRUSTED, message=UNTRUSTED)
    )
    prompt = AnsweredPrompt(
        prompt=UNTRUSTED,
        reference=UNTRUSTED,
        answers=(StepAnswer(step=0, text=UNTRUSTED), StepAnswer(step=9, text=UNTRUSTED)),
    )
    train = split(name=f"/data/{UNTRUSTED}", rows_read=101, rows_dropped={UNTRUSTED: 1}, dropped_examples=(bad,))
    return {
        "name": UNTRUSTED,
        "data": data(train=train),
        "prompts": (prompt,),
        "given": {"output_dir": UNTRUSTED},
        "settings": {"output_dir": UNTRUSTED, "model_name_or_path": UNTRUSTED},
        "settings_yaml": UNTRUSTED,
        "command": UNTRUSTED,
        "failure": UNTRUSTED,
        "written_at": UNTRUSTED,
        "model_class": UNTRUSTED,
        "data_digests": {"train": UNTRUSTED},
    }


def words(tree: Element) -> str:
    """The text of a page, white space squeezed."""
    return re.sub(r"\s+", " ", "".join(tree.itertext()))
