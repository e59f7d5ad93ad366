"""The predicted memory as lines for a terminal, and what to change if it does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.common.machine_records import MemoryAdvice, MemoryEstimate
from sft.common.text import size, wrapped

_ROWS = (
    ("weights", "weights_bytes"),
    ("gradients", "gradients_bytes"),
    ("optimizer", "optimizer_bytes"),
    ("activations", "activations_bytes"),
    ("logits", "logits_bytes"),
    ("slack", "slack_bytes"),
    ("process", "process_bytes"),
)
_MARGIN = " " * 15
_NAME = 12
_SIZE = 9


def memory_lines(
    memory: MemoryEstimate,
    advice: Sequence[MemoryAdvice],
    *,
    budget_bytes: int | None,
    device_memory_bytes: int | None,
) -> Iterator[str]:
    """A small table, followed by advice.

    Args:
        memory: the prediction.
        advice: shown only if the prediction exceeds the budget.
        budget_bytes: memory that may be used per device; None if unknown.
        device_memory_bytes: of one device; None if unknown.
    """
    for number, (name, field) in enumerate(_ROWS):
        label = "  memory" if number == 0 else ""
        if name != "process" or memory.process_bytes:
            yield _row(label, name, getattr(memory, field))
    total = memory.total_bytes
    share = ""
    if device_memory_bytes:
        share = f"  per device, of {size(device_memory_bytes)} ({total / device_memory_bytes:.0%})"
    yield _row("", "total", total) + share
    if budget_bytes is None or total <= budget_bytes:
        return
    message = f"DOES NOT FIT: {size(budget_bytes)} may be used."
    if not any(each.fits for each in advice):
        message += " No change of the settings would fit."
    elif len(advice) > 1:
        message += " Each of these changes would fit, cheapest first:"
    else:
        message += " This change would fit:"
    yield from wrapped(message, first=_MARGIN, rest=_MARGIN)
    for each in advice:
        needed = size(each.needed_bytes)
        text = f"{needed:>{_SIZE}}  {each.change}" if each.fits else f"{needed:>{_SIZE}}  smallest: {each.change}"
        yield from wrapped(text, first=_MARGIN, rest=_MARGIN + " " * (_SIZE + 2))


def _row(label: str, name: str, count: int) -> str:
    return f"{label:<{len(_MARGIN)}}{name:<{_NAME}}{size(count):>{_SIZE}}"
