"""What a run is, beside its curves, for trackers: as values, and as text that TensorBoard shows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft.common.data_records import DataReport
from sft.common.files import json_safe
from sft.common.run_records import BatchPlan, DistributedContext, ModelFootprint
from sft.processes.device_memory import total_memory_bytes
from sft.processes.environment import num_usable_cores
from sft.reporting.environment import device_name
from sft.reporting.summary import installed_versions, plan_document, split_counts

_LONG = ("dropped_examples", "duplicate_examples", "sources")
"""Counts that are lists of places: they stand in `run_summary.json`."""


def describe_run(
    configuration: Mapping[str, Any],
    report: DataReport,
    size: ModelFootprint,
    plan: BatchPlan,
    context: DistributedContext,
    *,
    products: str,
    peak_flops: float | None,
) -> dict[str, dict[str, Any]]:
    """Configuration, data, model, batch plan and environment, ready for JSON.

    Args:
        configuration: the resolved settings by key.
        report: the data's counts.
        size: the model's.
        plan: the batch plan.
        context: this process.
        products: the type that matrix products are made in.
        peak_flops: of one device; None where it is not known.
    """
    splits = {name: split_counts(split) for name, split in zip(("train", "validation"), report.splits, strict=False)}
    return json_safe({
        "configuration": dict(configuration),
        "data": {
            **{name: {key: value for key, value in counts.items() if key not in _LONG}
               for name, counts in splits.items()},
            "leakage": report.leakage,
            "is_complete": report.is_complete,
        },
        "model": {name: getattr(size, name) for name in size.__dataclass_fields__},
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
    })  # fmt: skip


def _in_gib(num_bytes: int | None) -> float | None:
    return num_bytes and round(num_bytes / 2**30, 2)


def as_table(values: Mapping[str, Any]) -> str:
    """Values as a Markdown table; what is nested gets names with dots."""
    rows = [f"| {name} | {_cell(value)} |" for name, value in _flat(values)]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def as_code(text: str) -> str:
    """Text as a Markdown block in which nothing is markup."""
    return textwrap.indent(text, "    ")


def sample_text(prompt: str, answer: str, ended: bool, reference: str | None) -> str:
    """A sample prompt with the model's answer, in Markdown."""
    cut = "" if ended else " (cut: no end token came)"
    parts = [f"**prompt**\n\n{as_code(prompt)}", f"**answer**{cut}\n\n{as_code(answer)}"]
    if reference is not None:
        parts.append(f"**data**\n\n{as_code(reference)}")
    return "\n\n".join(parts)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield f"{before}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{before}{name}", value


def _cell(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, float):
        return f"{value:,.6g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
