"""The names of logged values in trackers: in groups, and in units that suit a chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_GIB, _TERA = 2.0**-30, 1e-12
_NAMES: dict[str, tuple[str, float]] = {
    "memory_allocated_bytes": ("memory/allocated_gib", _GIB),
    "memory_reserved_bytes": ("memory/reserved_gib", _GIB),
    "peak_memory_bytes": ("memory/peak_gib", _GIB),
    "memory_share": ("memory/peak_share_of_device", 1),
    "cpu_utilization": ("utilization/cpu", 1),
    "gpu_utilization": ("utilization/gpu", 1),
    "mfu": ("utilization/mfu", 1),
    "model_flops_per_second": ("utilization/model_tflops_per_second", _TERA),
    "rows_dropped": ("data/rows_dropped", 1),
    "eval_runtime": ("speed/eval_seconds", 1),
    "eval_samples_per_second": ("speed/eval_rows_per_second", 1),
    "eval_steps_per_second": ("speed/eval_batches_per_second", 1),
}
"""Name in `metrics.jsonl` -> name in trackers, and the factor for its value."""
TOTALS = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
"""Logged once, at the end of training: not drawn as curves."""
CHARTS: dict[str, tuple[str, ...]] = {
    "loss": ("train/loss", "eval/loss"),
    "perplexity": ("train/perplexity", "eval/perplexity"),
    "accuracy": (
        "train/token_accuracy",
        "eval/token_accuracy",
        "eval/sequence_accuracy",
        "eval/samples_ended",
    ),
    "tokens per second": (
        "speed/supervised_tokens_per_second",
        "speed/tokens_per_second",
        "speed/computed_tokens_per_second",
    ),
    "memory in GiB": ("memory/allocated_gib", "memory/reserved_gib", "memory/peak_gib"),
    "utilization": ("utilization/mfu", "utilization/gpu", "utilization/cpu"),
}
"""Chart -> the curves that it combines."""


def tracked(logs: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The values of a log event with their tracker names, `group/name`. Totals are skipped."""
    for name, value in logs.items():
        if name in TOTALS or not isinstance(value, int | float):
            continue
        tag, factor = _NAMES.get(name) or (_by_kind(name), 1)
        yield tag, value if factor == 1 else value * factor


def _by_kind(name: str) -> str:
    if name.startswith(("eval_", "test_", "forgetting_")):
        group, _, rest = name.partition("_")
        return f"{group}/{rest}"
    if name.endswith("_per_second"):
        return f"speed/{name}"
    if name.endswith("_seen"):
        return f"data/{name}"
    return f"train/{name}"
