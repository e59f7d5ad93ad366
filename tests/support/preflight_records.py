"""Records of a preflight, with the changes of a test."""

from __future__ import annotations

from sft.common.data_records import (
    DataReport,
    DroppedRow,
    LengthReport,
    RowPreview,
    RowProblem,
    RowSource,
    SourceReport,
    SplitReport,
)
from sft.common.machine_records import Environment, MemoryEstimate
from sft.common.run_records import BatchPlan
from sft.common.shown_rows import Segment
from sft.reporting.preflight.text import Preflight

GIB = 2**30
EMPTY_ANSWER = RowProblem(reason="empty_answer", message="'answer' is empty")


def row_source(line: int, file: str = "a.jsonl") -> RowSource:
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
    """Ten rows read: four dropped, three too long of which two lose their end, one a duplicate."""
    values = {
        "sources": (source_report(),),
        "rows_read": 10,
        "rows_used": 6,
        "rows_dropped": {"empty_answer": 4},
        "dropped_examples": tuple(DroppedRow(source=row_source(line), problem=EMPTY_ANSWER) for line in (3, 5, 8, 9)),
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
        "duplicate_examples": ((row_source(7), row_source(2)),),
    }
    return SplitReport(**(values | changed))


def validation_report() -> SplitReport:
    name = "v.jsonl"
    source = source_report(name=name, files=(name,), rows_read=5, rows_used=5, rows_dropped={})
    return SplitReport(sources=(source,), rows_read=5, rows_used=5, rows_with_trained_end=5)


def preflight(**changed) -> Preflight:
    """The preflight of a run that would start."""
    values = {
        "report": DataReport(
            train=train_report(),
            validation=validation_report(),
            leakage=1,
            leakage_examples=((row_source(4, "v.jsonl"), row_source(1)),),
        ),
        "previews": (
            RowPreview(
                number=1,
                source=row_source(1),
                num_tokens=9,
                num_supervised=4,
                segments=(Segment(text="user: hi\n", trained=False), Segment(text="hello<end>", trained=True)),
            ),
            RowPreview(number=3, source=row_source(3), problem=EMPTY_ANSWER),
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


def segments(*texts: str) -> list[Segment]:
    """Unsupervised and supervised text, alternating."""
    return [Segment(text=text, trained=number % 2 == 1) for number, text in enumerate(texts)]
