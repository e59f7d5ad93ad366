"""The trend at the end of a curve of validation losses, and whether it stands out from the curve's fluctuation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FALLING, FLAT, RISING, NOISY, TOO_FEW = "falling", "flat", "rising", "noisy", "too few"
WORTHWHILE_SHARE, WORTHWHILE_NATS = 0.01, 0.01
"""A fall that is worth more training: relative and in nats per token, both."""
SMALLEST_SHARE, SMALLEST_NATS = 0.002, 0.002
"""A change below one of these is none."""
STEADY = 0.9
"""A fall per token that is at least this share of the one before has not slowed down."""
MOST_SIGMAS = 2.0
"""Standard deviations of the fluctuation that a change must exceed."""
FEWEST = 3
"""Evaluations that a trend can be told from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """How a curve ends, by its last two thirds: `earlier` and `later` are the falls from one third to the next."""

    kind: str
    earlier: float = 0.0
    later: float = 0.0
    expected: float = 0.0
    """The further fall over as many tokens again as the later one took, if the trend continues."""
    uncertainty: float = 0.0
    """Changes up to this may be fluctuation; 0 with fewer evaluations than show it."""


def find_trend(points: Sequence[tuple[float, float]]) -> Trend:
    """The trend of (tokens, loss), in the order of tokens.

    The points are averaged in three groups of equal number, so that one evaluation decides nothing where there are
    many. Falls are compared per token: falls that shrink from group to group are continued to shrink alike.
    """
    points = _evenly_spaced(points)
    if len(points) < FEWEST:
        return Trend(kind=TOO_FEW)
    width = len(points) // 3
    first, second, third = (_mean(points[len(points) - n * width :][:width]) for n in (3, 2, 1))
    earlier, later = first[1] - second[1], second[1] - third[1]
    uncertainty = MOST_SIGMAS * fluctuation([loss for _, loss in points]) * math.sqrt(2 / width)
    rates = earlier / (second[0] - first[0]), later / (third[0] - second[0])
    slowing = min(rates[1] / rates[0], 1.0) if earlier > 0 else 1.0
    expected = later * slowing
    smallest = max(SMALLEST_SHARE * third[1], SMALLEST_NATS, uncertainty)
    worthwhile = max(WORTHWHILE_SHARE * third[1], WORTHWHILE_NATS)
    turns = _num_turns([loss for _, loss in points], smallest) if width == 1 else 0
    is_hidden = abs(later) <= smallest and uncertainty > worthwhile
    if turns > 1 or is_hidden or (later > smallest and earlier < -smallest):
        kind = NOISY
    elif later < -smallest:
        kind = RISING
    elif later > smallest and (expected >= worthwhile or slowing >= STEADY):
        kind = FALLING
    else:
        kind = FLAT
    return Trend(kind=kind, earlier=earlier, later=later, expected=expected, uncertainty=uncertainty)


def fluctuation(losses: Sequence[float]) -> float:
    """Standard deviation of single losses around a smooth curve: from third differences, which a parabola has not.

    Of the later half of the losses, by their median. 0 for fewer than five losses.
    """
    losses = losses[-max(5, len(losses) // 2) :]
    if len(losses) < 5:
        return 0.0
    fours = zip(losses, losses[1:], losses[2:], losses[3:], strict=False)
    thirds = [abs(a - 3 * b + 3 * c - d) for a, b, c, d in fours]
    # The variance of a third difference is 1 + 9 + 9 + 1 times that of a loss; 0.6745 is the median of |normal|.
    return statistics.median(thirds) / math.sqrt(20) / 0.6745


def _num_turns(losses: Sequence[float], smallest: float) -> int:
    """How often the losses turn from falling to rising or back; changes of at most `smallest` do not count."""
    rises = [after > before for before, after in pairwise(losses) if abs(after - before) > smallest]
    return sum(first != second for first, second in pairwise(rises))


def _evenly_spaced(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points with finite losses, one for each number of tokens; without the last but one if it is close to the last.

    The evaluation at the end of a run may follow a few steps after a regular one.
    """
    found = sorted({tokens: (tokens, loss) for tokens, loss in points if math.isfinite(loss)}.values())
    if len(found) > FEWEST and found[-1][0] - found[-2][0] < (found[-2][0] - found[-3][0]) / 2:
        del found[-2]
    return found


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points)
