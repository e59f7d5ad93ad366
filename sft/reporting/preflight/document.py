"""`preflight.json`: what a run would train on. Its keys are a contract for scripts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sft.common.data_records import LengthReport, RowPreview, SplitReport
from sft.common.files import json_safe, write_json
from sft.common.run_records import BatchPlan
from sft.reporting.preflight.text import Preflight
from sft.reporting.summary import pairs_of_locations, plan_document, set_counts, split_counts


def preflight_document(preflight: Preflight) -> dict[str, Any]:
    """The report, ready for JSON."""
    report, train = preflight.report, preflight.report.train
    environment = preflight.environment
    document = {
        "sound": not preflight.problems,
        "problems": list(preflight.problems),
        "notes": list(preflight.notes),
        "rows_read": report.rows_read,
        "rows_used": report.rows_used,
        "rows_dropped": report.rows_dropped,
        "duplicates": train.duplicates,
        "leakage": report.leakage,
        "leakage_examples": pairs_of_locations(report.leakage_examples),
        "lengths": _lengths(train, preflight.max_seq_length),
        "supervised_share": train.supervised_share,
        "is_complete": report.is_complete,
        "train": split_counts(train),
        "validation": report.validation and split_counts(report.validation),
        "sets": set_counts(report),
        "samples": [_sample(preview) for preview in preflight.previews],
        "plan": preflight.plan and _plan(preflight.plan, train, preflight),
        "environment": environment
        and {**dataclasses.asdict(environment), "needed_disk_bytes": environment.needed_disk_bytes},
    }
    return json_safe(document)


def write_preflight(document: dict[str, Any], path: str | Path) -> None:
    """Write the document atomically; creates the folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(document, path)


def _lengths(split: SplitReport, max_seq_length: int) -> dict[str, int | None]:
    """Row lengths before truncation, and how many rows `max_seq_length` truncates in which way."""
    found = split.lengths or LengthReport(median=0, p90=0, p95=0, p99=0, longest=0)
    return {
        "median": found.median,
        "p90": found.p90,
        "p95": found.p95,
        "p99": found.p99,
        "max": found.longest,
        "max_seq_length": max_seq_length,
        "too_long": split.rows_too_long,
        "lose_answer": split.rows_that_lose_the_answer,
        "lose_end": split.rows_that_lose_the_end,
        "lose_only_prompt": split.rows_that_lose_only_prompt,
        "keep_95": found.p95,
        "keep_99": found.p99,
        "keep_100": found.longest,
    }


def _sample(preview: RowPreview) -> dict[str, Any]:
    sample: dict[str, Any] = {
        "number": preview.number,
        "source": str(preview.source),
        "segments": [
            {"text": segment.text, "trained": segment.trained}
            | ({} if segment.weight is None else {"weight": segment.weight})
            for segment in preview.segments
        ],
        "tokens": preview.num_tokens,
        "supervised_tokens": preview.num_supervised,
        "truncated": preview.was_truncated,
        "changes": list(preview.changes),
    }
    if preview.problem is not None:
        sample["problem"] = {"reason": preview.problem.reason, "message": preview.problem.message}
    return sample


def _plan(plan: BatchPlan, train: SplitReport, preflight: Preflight) -> dict[str, Any]:
    memory = preflight.memory
    rows_an_epoch = sum(source.rows_an_epoch for source in train.sources)
    return {
        **plan_document(plan),
        "rows_per_epoch": rows_an_epoch,
        "rows_of_last_step": preflight.last_step_rows or plan.global_batch_size,
        "tokens_per_epoch": train.tokens_an_epoch,
        "supervised_tokens_per_epoch": train.supervised_tokens_an_epoch,
        "memory": memory
        and {
            **dataclasses.asdict(memory),
            "total_bytes": memory.total_bytes,
            "budget_bytes": preflight.memory_budget_bytes,
            "advice": [dataclasses.asdict(advice) for advice in preflight.advice],
        },
    }
