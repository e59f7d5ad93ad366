"""The description of a run for trackers: as values, and as Markdown text, which TensorBoard renders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft.common.data_records import DataReport
from sft.common.files import json_safe
from sft.common.markdown import Markdown, fenced, markdown_table
from sft.common.run_records import BatchPlan, DistributedContext, ModelFootprint
from sft.processes.device_memory import total_memory_bytes
from sft.processes.environment import num_usable_cores
from sft.reporting.environment import device_name
from sft.reporting.summary import installed_versions, plan_document, split_counts

_LISTS = ("dropped_examples", "duplicate_examples", "sources")
"""Counts that are lists of rows; `run_summary.json` has them."""


def describe_run(
    configuration: Mapping[str, Any],
    report: DataReport,
    footprint: ModelFootprint,
    plan: BatchPlan,
    context: DistributedContext,
    *,
    products: str,
    peak_flops: float | None,
) -> dict[str, dict[str, Any]]:
    """Configuration, data, model, batch plan and environment, ready for JSON.

    Args:
        configuration: the resolved settings by key.
        report: counts of the data.
        footprint: size of the model.
        plan: the batch plan.
        context: this process.
        products: data type of matrix multiplications.
        peak_flops: of one device, in FLOP/s; None if unknown.
    """
    splits = {name: split_counts(split) for name, split in report.splits.items()}
    description = {
        "configuration": dict(configuration),
        "data": {
            **{name: _without_lists(counts) for name, counts in splits.items()},
            "leakage": report.leakage,
            "is_complete": report.is_complete,
        },
        "model": {name: getattr(footprint, name) for name in footprint.__dataclass_fields__},
        "batch_plan": plan_document(plan),
        "environment": {
            "device": context.device,
            "device_name": device_name(context.device),
            "device_memory_gib": _in_gib(total_memory_bytes(context.device)),
            "processes": context.world_size,
            "cpu_cores": num_usable_cores(),
            "products_in": products,
            "peak_tflops": peak_flops and peak_flops / 1e12,
            **{f"version_{name}": text for name, text in installed_versions().items()},
        },
    }
    return json_safe(description)


def _without_lists(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in counts.items() if key not in _LISTS}


def _in_gib(num_bytes: int | None) -> float | None:
    return num_bytes and round(num_bytes / 2**30, 2)


def as_table(values: Mapping[str, Any]) -> Markdown:
    """Values as a Markdown table; nested keys are joined by dots."""
    return markdown_table(("name", "value"), [(name, _cell(value)) for name, value in _flat(values)])


def sample_text(prompt: str, answer: str, ended: bool, reference: str | None) -> Markdown:
    """A sample prompt with the model's answer, in Markdown."""
    cut = "" if ended else " (cut off: no end token)"
    parts = [f"**prompt**\n\n{fenced(prompt)}", f"**answer**{cut}\n\n{fenced(answer)}"]
    if reference is not None:
        parts.append(f"**reference**\n\n{fenced(reference)}")
    return Markdown("\n\n".join(parts))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", value


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
