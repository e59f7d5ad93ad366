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


def memory_lines(memory: MemoryEstimate, device_memory_bytes: int | None) -> Iterator[str]:
    """A small table as plain lines.

    Args:
        memory: the prediction.
        device_memory_bytes: of one device; None if unknown.
    """
    for number, (name, count) in enumerate(_kinds(memory)):
        label = "  memory" if number == 0 else ""
        share = ""
        if device_memory_bytes and name == "total":
            share = f"  per device, of {size(device_memory_bytes)} ({count / device_memory_bytes:.0%})"
        yield f"{label:<{len(_MARGIN)}}{name:<{_NAME}}{size(count):>{_SIZE}}{share}"


def memory_rows(memory: MemoryEstimate, device_memory_bytes: int | None) -> list[list[str]]:
    """The same as a header and rows, with the share of the device's memory for each kind."""
    if not device_memory_bytes:
        return [["memory per device", "size"], *([name, size(count)] for name, count in _kinds(memory))]
    header = ["memory per device", "size", f"of {size(device_memory_bytes)}"]
    return [header, *([name, size(count), f"{count / device_memory_bytes:.1%}"] for name, count in _kinds(memory))]


def advice_lines(memory: MemoryEstimate, advice: Sequence[MemoryAdvice], budget_bytes: int | None) -> Iterator[str]:
    """What to change if the prediction exceeds the budget; nothing if it fits.

    Args:
        memory: the prediction.
        advice: the changes.
        budget_bytes: memory that may be used per device; None if unknown.
    """
    if budget_bytes is None or memory.total_bytes <= budget_bytes:
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


def _kinds(memory: MemoryEstimate) -> list[tuple[str, int]]:
    """Each kind of memory with its bytes, and the total."""
    kinds = [(name, getattr(memory, field)) for name, field in _ROWS]
    return [*(kind for kind in kinds if kind[0] != "process" or memory.process_bytes), ("total", memory.total_bytes)]
