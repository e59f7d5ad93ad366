"""`run_summary.json`: what a run was and what came of it. Its keys are a contract for people's scripts."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from reporting.metrics_log import json_safe
from sft_types import BatchPlan, DataReport, SplitReport, TrainingResult

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "bitsandbytes")


def build_summary(
    result: TrainingResult, report: DataReport, plan: BatchPlan, config_digest: str, device: str
) -> dict[str, Any]:
    """The summary's content, ready for JSON."""
    train = {
        name: getattr(result, name)
        for name in (
            "steps",
            "epochs",
            "loss",
            "seconds",
            "examples_per_second",
            "tokens_per_second",
            "supervised_tokens_per_second",
            "peak_memory_bytes",
            "memory_share",
        )
    }
    summary = {
        "status": result.status,
        "eval_before": result.eval_before and dataclasses.asdict(result.eval_before),
        "eval_after": result.eval_after and dataclasses.asdict(result.eval_after),
        "train": train,
        "data": {
            "rows_read": report.rows_read,
            "rows_used": report.rows_used,
            "rows_dropped": report.rows_dropped,
            "train": _split_summary(report.train),
            "validation": report.validation and _split_summary(report.validation),
        },
        "batch_plan": {**dataclasses.asdict(plan), "global_batch_size": plan.global_batch_size},
        "samples": [dataclasses.asdict(sample) for sample in result.samples],
        "device": device,
        "versions": installed_versions(),
        "config_sha256": config_digest,
        "last_checkpoint": result.last_checkpoint,
    }
    return json_safe(summary)


def write_summary(summary: dict[str, Any], path: str | Path) -> None:
    """Writes the summary so that a reader never sees half of it."""
    target = Path(path)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _split_summary(split: SplitReport) -> dict[str, Any]:
    return {
        "format": split.format_name,
        "files": list(split.files),
        "rows_read": split.rows_read,
        "rows_used": split.rows_used,
        "rows_dropped": split.rows_dropped,
        "rows_truncated": split.rows_truncated,
        "rows_without_their_end": split.rows_without_their_end,
        "tokens": split.tokens,
        "supervised_tokens": split.supervised_tokens,
        "longest_row": split.longest_row,
    }
