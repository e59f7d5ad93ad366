"""The micro-batch size that fits into memory and is fast: tried on the real model, from small to large.

Each size is measured, none is inferred; the arithmetic only serves to skip sizes that would not fit. `measure` and the
budget come from the caller: nothing here knows a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sft.common.device_errors import is_out_of_memory

SPEED_TOLERANCE = 0.03
"""Sizes within this share of the best speed count as equally fast: the smallest of them is chosen."""
SLACK = 0.03
"""Share of the budget that stays free: over a long run the allocator fragments more than in a short trial."""
_STEP_UP = 1.5
"""Least ratio of successive sizes that are tried."""
_LEAST_SLOPE = 0.8
"""Memory is assumed to grow by at least this share of the prediction: between small sizes noise can hide growth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """The measurement of one micro-batch."""

    size: int
    """Rows, or packs."""
    tokens: int
    peak_bytes: int | None
    """Peak memory of the device; None where it ran out of memory."""
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
    """In ascending order of size, as they were run; the last one may be the first that did not fit."""
    budget_bytes: int


def candidate_sizes(rows_per_device: int | None, most: int) -> list[int]:
    """Sizes to try, ascending.

    Args:
        rows_per_device: rows of a step that each device processes in all; sizes must divide it. None where no global
            batch size is set: then powers of two.
        most: the largest size to try.
    """
    if rows_per_device is None:
        sizes = [2**power for power in range(max(most, 1).bit_length())]
    else:
        sizes = [size for size in range(1, rows_per_device + 1) if rows_per_device % size == 0]
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
    """Try sizes in ascending order until memory is exhausted or speed no longer grows.

    The budget only determines where the trials end, so a larger budget never gives a smaller size.

    Args:
        candidates: sizes, ascending.
        measure: trains a micro-batch of that many of the longest rows and returns the measurement, with a peak; raises
            `torch.OutOfMemoryError` if it does not fit.
        budget_bytes: what a device may hold at its peak.
        predict: estimated bytes of a size; only differences between sizes are used.

    Returns:
        The chosen size, None where not even the first candidate fits, and all trials.
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
    chosen = next((trial for trial in fitting if trial.tokens_per_second >= (1 - SPEED_TOLERANCE) * best), None)
    return BatchFit(
        size=chosen.size if chosen else None,
        trials=tuple(fitting if failed is None else [*fitting, failed]),
        budget_bytes=budget_bytes,
    )


def _try_twice(size: int, measure: Callable[[int], Trial]) -> Trial:
    """The higher peak and the shorter time of two runs, the first of which warms up; no peak where memory ran out."""
    try:
        first, second = measure(size), measure(size)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Trial(size=size, tokens=0, peak_bytes=None, seconds=0.0)
    return Trial(
        size=size,
        tokens=second.tokens,
        peak_bytes=max(_peak(first), _peak(second)),
        seconds=min(first.seconds, second.seconds),
    )


def _peak(trial: Trial) -> int:
    """The peak of a trial that did not run out of memory."""
    assert trial.peak_bytes is not None
    return trial.peak_bytes


def _expected_bytes(size: int, trials: Sequence[Trial], predict: Callable[[int], int]) -> float:
    """Peak of the next size: on the line through the last two trials, but not below the estimate's growth."""
    last = trials[-1]
    predicted = predict(size) - predict(last.size)
    growth: float = _LEAST_SLOPE * predicted if len(trials) > 1 else predicted
    if len(trials) > 1:
        before = trials[-2]
        slope = (_peak(last) - _peak(before)) / (last.size - before.size)
        growth = max(growth, slope * (size - last.size))
    return _peak(last) + growth


def _is_saturated(trials: Sequence[Trial]) -> bool:
    """Whether the last two increases of the size together gained less speed than counts as faster."""
    if len(trials) < 3:
        return False
    return trials[-1].tokens_per_second < (1 + SPEED_TOLERANCE) * trials[-3].tokens_per_second
