"""`run_summary.json`: the results of a run. Its keys are a contract for scripts."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sft.common.data_records import DataReport, RowSource, SplitReport
from sft.common.files import json_safe
from sft.common.run_records import BatchPlan, TrainingResult
from sft.reporting.remarks import remark_counts

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "bitsandbytes")
MEASURED = (
    "seconds",
    "examples_per_second",
    "tokens_per_second",
    "supervised_tokens_per_second",
    "model_flops_per_second",
    "mfu",
    "peak_memory_bytes",
    "memory_share",
)
"""Fields of `TrainingResult` that are measured while steps are trained."""
_TRAIN_FIELDS = ("steps", "epochs", "loss", *MEASURED, "rows_dropped")
"""Fields of `TrainingResult` under `train`."""


def build_summary(
    result: TrainingResult,
    report: DataReport,
    plan: BatchPlan,
    config_digest: str,
    device: str,
    *,
    data_digests: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of the file, ready for JSON.

    Args:
        result: of training.
        report: the counts of the data.
        plan: the batch plan at the end.
        config_digest: of the configuration.
        device: of the first process.
        data_digests: of the rows, by split.
    """
    train = {name: getattr(result, name) for name in _TRAIN_FIELDS} | remark_counts(result.remarks)
    if result.loss_unweighted is not None:
        train["loss_unweighted"] = result.loss_unweighted
    summary = {
        "status": result.status,
        "eval_before": result.eval_before and result.eval_before.document(),
        "eval_after": result.eval_after and result.eval_after.document(),
        **{name: evaluation.document() for name, evaluation in result.at_ends.items()},
        "train": train,
        "data": {
            "rows_read": report.rows_read,
            "rows_used": report.rows_used,
            "rows_dropped": report.rows_dropped,
            "train": split_counts(report.train),
            "validation": report.validation and split_counts(report.validation),
            "sets": set_counts(report),
            "leakage": report.leakage,
            "is_complete": report.is_complete,
            "digests": dict(data_digests or {}),
        },
        "batch_plan": plan_document(plan),
        "stopped_early": result.early_stop,
        "bad_steps": result.bad_steps,
        "memory_shortages": result.memory_shortages,
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
        "samples_ended": {
            "asked": len(result.samples),
            "before": sum(sample.before_ended is True for sample in result.samples),
            "after": sum(sample.after_ended is True for sample in result.samples),
        },
        "device": device,
        "versions": installed_versions(),
        "config_sha256": config_digest,
        "last_checkpoint": result.last_checkpoint,
    }
    return json_safe(summary)


def plan_document(plan: BatchPlan) -> dict[str, Any]:
    """The batch plan in numbers; of packs only the sizes, not their rows."""
    packs = plan.packs
    return {
        "per_device_train_batch_size": plan.per_device_train_batch_size,
        "per_device_eval_batch_size": plan.per_device_eval_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "world_size": plan.world_size,
        "global_batch_size": plan.global_batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "parts": plan.num_chunks,
        "packs": packs and {"num_packs": packs.num_packs, "capacity": packs.capacity, "fill": packs.fill},
    }


def plan_entries(plan: BatchPlan) -> dict[str, Any]:
    """The plan as saved in a checkpoint, with the batch sizes that the settings asked for; ready for JSON."""
    return json_safe({**plan_document(plan), "asked": dict(plan.asked)})


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect results."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def set_counts(report: DataReport) -> list[dict[str, Any]]:
    """Every count of the named validation sets, the test sets and the forgetting check, ready for JSON."""
    return [
        {
            "kind": one.kind,
            "name": one.name,
            "leakage": one.leakage,
            "leakage_examples": pairs_of_locations(one.leakage_examples),
            **split_counts(one.split),
        }
        for one in report.sets
    ]


def split_counts(split: SplitReport) -> dict[str, Any]:
    """Every count of a split, ready for JSON."""
    return {
        "format": split.format_name,
        "files": list(split.files),
        "rows_read": split.rows_read,
        "rows_made": split.rows_made,
        "rows_used": split.rows_used,
        "rows_dropped": dict(split.rows_dropped),
        "dropped_examples": [
            {"source": str(row.source), "reason": row.problem.reason, "message": row.problem.message}
            for row in split.dropped_examples
        ],
        "sources": [dataclasses.asdict(source) for source in split.sources],
        "duplicates": split.duplicates,
        "duplicate_examples": pairs_of_locations(split.duplicate_examples),
        "rows_too_long": split.rows_too_long,
        "rows_that_lose_the_answer": split.rows_that_lose_the_answer,
        "rows_that_lose_the_end": split.rows_that_lose_the_end,
        "rows_that_lose_only_prompt": split.rows_that_lose_only_prompt,
        "rows_split": split.rows_split,
        "pieces": split.pieces,
        "untrained_pieces": split.untrained_pieces,
        "rows_shortened": split.rows_shortened,
        "rows_with_trained_end": split.rows_with_trained_end,
        "notes": dict(split.notes),
        **remark_counts(split.remarks),
        "tokens": split.tokens,
        "supervised_tokens": split.supervised_tokens,
        "longest_row": split.longest_row,
        "lengths": split.lengths and dataclasses.asdict(split.lengths),
        **({} if split.weights is None else {"weights": dataclasses.asdict(split.weights)}),
    }


def pairs_of_locations(pairs: Sequence[tuple[RowSource, RowSource]]) -> list[list[str]]:
    """Rows and the earlier rows that they duplicate, as `file:line`."""
    return [[str(row), str(original)] for row, original in pairs]
