"""Scores of a generated answer against its reference, and means of them with intervals. Standard library only."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_Z = 1.959963984540054
"""Of a normal distribution, for 95 %."""
RESAMPLES = 1000


def exact_match(answer: str, reference: str) -> float:
    """Whether both are the same text, apart from white space at the edges."""
    return float(answer.strip() == reference.strip())


def contains(answer: str, reference: str) -> float:
    """Whether the answer contains the reference, without white space at its edges."""
    return float(reference.strip() in answer)


def json_equal(answer: str, reference: str) -> float:
    """Whether both are JSON of the same value; the order of keys does not matter."""
    try:
        return float(json.loads(answer) == json.loads(reference))
    except (ValueError, RecursionError):
        return 0.0


def number_match(answer: str, reference: str) -> float:
    """Whether the last numbers of both are equal, to 1e-9; thousands may be separated by commas."""
    found, expected = last_number(answer), last_number(reference)
    return float(found is not None and expected is not None and math.isclose(found, expected, rel_tol=1e-9))


def last_number(text: str) -> float | None:
    """The last number in a text; None without any."""
    found = [match.rstrip(".,").replace(",", "") for match in _NUMBER.findall(text)]
    return float(found[-1]) if found else None


SCORES: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains": contains,
    "json_equal": json_equal,
    "number_match": number_match,
}
"""Name in `answer_scores` -> score of an answer and a reference, from 0 to 1."""


def interval(values: Sequence[float]) -> tuple[float, float, str]:
    """A 95 % interval of the mean, and how it was found.

    Wilson's score interval (Wilson, 1927) for values of 0 and 1, else percentiles of 1,000 bootstrap means with a fixed
    seed (Efron, 1979).
    """
    count = len(values)
    mean = sum(values) / count
    if all(value in (0, 1) for value in values):
        center = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
        half = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
        return max(center - half, 0.0), min(center + half, 1.0), "Wilson"
    draw = random.Random(0)
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))], "bootstrap"


def summary(scores: Sequence[Mapping[str, float]], ended: Sequence[bool]) -> dict[str, Any]:
    """Means of the scores of several answers, with `rows`, `ended` and `intervals`; ready for JSON.

    Args:
        scores: of each answer, by name.
        ended: whether an end token ended it.
    """
    names = dict.fromkeys(name for one in scores for name in one)
    values = {name: [one[name] for one in scores if name in one] for name in names}
    found: dict[str, Any] = {name: sum(own) / len(own) for name, own in values.items()}
    intervals = {name: dict(zip(("low", "high", "by"), interval(own), strict=True)) for name, own in values.items()}
    return {**found, "rows": len(scores), "ended": sum(ended), "intervals": intervals}
