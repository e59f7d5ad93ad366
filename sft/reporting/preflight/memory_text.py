"""The predicted memory as lines for a terminal: by part, and what to change where it is more than there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.common.machine_records import MemoryAdvice, MemoryEstimate
from sft.common.text import size, wrapped

_PARTS = (
    ("weights", "weights_bytes"),
    ("gradients", "gradients_bytes"),
    ("optimizer", "optimizer_bytes"),
    ("activations", "activations_bytes"),
    ("logits", "logits_bytes"),
    ("slack", "slack_bytes"),
    ("process", "process_bytes"),
)
_MARGIN = " " * 14
_NAME = 12
_SIZE = 9


def memory_lines(
    memory: MemoryEstimate,
    advice: Sequence[MemoryAdvice],
    *,
    budget_bytes: int | None,
    device_memory_bytes: int | None,
) -> Iterator[str]:
    """A small table, and under it the advice.

    Args:
        memory: the prediction.
        advice: shown only where the prediction is more than the budget.
        budget_bytes: what a device may hold; None where nothing is known.
        device_memory_bytes: what it has; None where the system does not tell.
    """
    for number, (name, field) in enumerate(_PARTS):
        label = "  memory" if number == 0 else ""
        if name != "process" or memory.process_bytes:
            yield _row(label, name, getattr(memory, field))
    total = memory.total_bytes
    of_what_there_is = ""
    if device_memory_bytes:
        of_what_there_is = f"  a device, of {size(device_memory_bytes)} ({total / device_memory_bytes:.0%})"
    yield _row("", "total", total) + of_what_there_is
    if budget_bytes is None or total <= budget_bytes:
        return
    over = f"MORE THAN THERE IS: {size(budget_bytes)} may be used."
    can_be_had = any(each.fits for each in advice)
    if not can_be_had:
        over += " No change of the settings fits."
    elif len(advice) > 1:
        over += " Each of these would fit, the cheapest first:"
    else:
        over += " This would fit:"
    yield from wrapped(over, first=_MARGIN, rest=_MARGIN)
    for each in advice:
        needed = size(each.needed_bytes)
        text = f"{needed:>{_SIZE}}  {each.change}" if each.fits else f"{needed:>{_SIZE}}  the least: {each.change}"
        yield from wrapped(text, first=_MARGIN, rest=_MARGIN + " " * (_SIZE + 2))


def _row(label: str, name: str, count: int) -> str:
    return f"{label:<{len(_MARGIN)}}{name:<{_NAME}}{size(count):>{_SIZE}}"
