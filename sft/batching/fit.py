"""The micro-batch size that fits into memory and is fast: tried on the real model, from small to large.

The plan is only as good as its figures, so each size is measured, none is inferred. What the arithmetic knows is used
to leave out what would not fit. `measure` and the budget come from outside: nothing here knows a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import OutOfMemoryError

ENOUGH = 0.03
"""Sizes within this share of the best speed count as equally fast: the smallest of them is taken."""
SLACK = 0.03
"""Share of the budget that stays free: a long run's allocator has holes that a short trial does not see."""
_STEP_UP = 1.5
"""Sizes are tried that are at least so many times the last one."""
_LEAST_SLOPE = 0.8
"""Memory is taken to grow at least so much as predicted: between two small sizes, noise can hide it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What a micro-batch took that was tried out."""

    size: int
    """Rows, or packs."""
    tokens: int
    peak_bytes: int | None
    """The most that the device held; None where memory ran out."""
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFit:
    """A batch size found by trial."""

    size: int | None
    """None where nothing fits."""
    trials: tuple[Trial, ...]
    """In the order in which they were made, ascending; the last one may be the first that did not fit."""
    budget_bytes: int


def candidate_sizes(rows_a_device: int | None, most: int) -> list[int]:
    """Sizes to try, ascending.

    Args:
        rows_a_device: rows of a step that each device has to take in all: sizes must divide it. None where no global
            batch size is set: then powers of two.
        most: larger ones are of no use.
    """
    if rows_a_device is None:
        sizes = [2**power for power in range(max(most, 1).bit_length())]
    else:
        sizes = [size for size in range(1, rows_a_device + 1) if rows_a_device % size == 0]
    candidates: list[int] = []
    for size in sizes:
        if not candidates or (size >= _STEP_UP * candidates[-1] and size <= most):
            candidates.append(size)
    return candidates


def fit_batch_size(
    candidates: Sequence[int],
    measure: Callable[[int], Trial],
    budget_bytes: int,
    *,
    predict: Callable[[int], int],
) -> BatchFit:
    """Climbs through the sizes until memory or the gain in speed ends.

    The sizes that are tried do not depend on the budget but for where the climb ends, so a larger budget never gives a
    smaller size.

    Args:
        candidates: ascending.
        measure: trains a micro-batch of so many rows, the longest, and says what it took; raises
            `torch.OutOfMemoryError` where it does not fit.
        budget_bytes: what a device may hold at its fullest.
        predict: bytes by arithmetic; only differences of it are used.

    Returns:
        The choice; its size is None where not even the first candidate fits.
    """
    limit = int(budget_bytes * (1 - SLACK))
    fitting: list[Trial] = []
    failed: Trial | None = None
    for size in candidates:
        if fitting and (_expected_bytes(size, fitting, predict) > limit or _is_saturated(fitting)):
            break
        trial = _try_twice(size, measure)
        if trial.peak_bytes is None or trial.peak_bytes > limit:
            failed = trial
            break
        fitting.append(trial)
    best = max((trial.tokens_per_second for trial in fitting), default=0.0)
    chosen = next((trial for trial in fitting if trial.tokens_per_second >= (1 - ENOUGH) * best), None)
    return BatchFit(
        size=chosen.size if chosen else None,
        trials=tuple(fitting if failed is None else [*fitting, failed]),
        budget_bytes=budget_bytes,
    )


def _try_twice(size: int, measure: Callable[[int], Trial]) -> Trial:
    """The fuller and the faster of two runs: the first one also warms up. Without a peak where memory ran out."""
    try:
        first, second = measure(size), measure(size)
    except OutOfMemoryError:
        return Trial(size=size, tokens=0, peak_bytes=None, seconds=0.0)
    return Trial(
        size=size,
        tokens=second.tokens,
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
        seconds=min(first.seconds, second.seconds),
    )


def _expected_bytes(size: int, trials: Sequence[Trial], predict: Callable[[int], int]) -> float:
    """Peak of the next size: on the line through the last two trials, and not below what the arithmetic says."""
    last = trials[-1]
    predicted = predict(size) - predict(last.size)
    growth = _LEAST_SLOPE * predicted if len(trials) > 1 else predicted
    if len(trials) > 1:
        before = trials[-2]
        slope = (last.peak_bytes - before.peak_bytes) / (last.size - before.size)
        growth = max(growth, slope * (size - last.size))
    return last.peak_bytes + growth


def _is_saturated(trials: Sequence[Trial]) -> bool:
    """Whether two steps up together brought less than what counts as faster."""
    if len(trials) < 3:
        return False
    return trials[-1].tokens_per_second < (1 + ENOUGH) * trials[-3].tokens_per_second
