"""The curves of a report: which figures of the log belong into one picture, in which unit, on which scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.reporting.report.records import best_evaluation, is_number

LOG_FROM = 20
"""A figure whose largest value is so many times its smallest is drawn on a log scale, where that makes sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a picture."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(step, value)."""
    colour: int
    """1 or 2: which of the report's colours."""
    has_dots: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One picture."""

    title: str
    unit: str
    series: tuple[Series, ...]
    from_zero: bool = False
    is_log: bool = False
    marked: tuple[float, float] | None = None
    """A point that is ringed: the best validation loss."""
    marked_as: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    field: str
    name: str
    colour: int
    has_dots: bool = False
    scale: float = 1.0


_PICTURES: tuple[tuple[str, str, bool, tuple[_Line, ...]], ...] = (
    (
        "Tokens right", "%", True,
        (_Line("token_accuracy", "training", 1, False, 100), _Line("eval_token_accuracy", "validation", 2, True, 100)),
    ),
    (
        "Answers right", "%", True, (_Line("eval_sequence_accuracy", "validation", 2, True, 100),),
    ),
    ("Learning rate", "", True, (_Line("learning_rate", "learning rate", 1),)),
    ("Gradient norm", "", False, (_Line("grad_norm", "gradient norm", 1),)),
    (
        "Throughput", "tokens/s", True,
        (_Line("tokens_per_second", "all tokens", 1), _Line("supervised_tokens_per_second", "trained tokens", 2)),
    ),
    (
        "Memory", "GiB", True,
        (_Line("memory_allocated_bytes", "in use", 1, False, 2**-30),
         _Line("peak_memory_bytes", "most so far", 2, False, 2**-30)),
    ),
    (
        "Utilization", "%", True,
        (_Line("cpu_utilization", "CPU", 1, False, 100), _Line("gpu_utilization", "GPU", 2, False, 100)),
    ),
)  # fmt: skip
_MAY_BE_LOG = {"Gradient norm"}


def find_curves(events: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The pictures for which there are figures; the loss first."""
    curves = [_loss_curve(events)]
    for title, unit, from_zero, lines in _PICTURES:
        series = tuple(found for line in lines if (found := _series(events, line)).points)
        is_log = title in _MAY_BE_LOG and _is_wide(series)
        curves.append(Curve(title=title, unit=unit, series=series, from_zero=from_zero and not is_log, is_log=is_log))
    return tuple(curve for curve in curves if curve.series)


def _loss_curve(events: Sequence[Mapping[str, Any]]) -> Curve:
    series = tuple(
        found
        for line in (_Line("loss", "training", 1), _Line("eval_loss", "validation", 2, True))
        if (found := _series(events, line)).points
    )
    best = best_evaluation([event for event in events if "eval_loss" in event])
    return Curve(
        title="Loss", unit="nats a token", series=series, is_log=_is_wide(series),
        marked=best and (best["step"], best["eval_loss"]), marked_as="best validation",
    )  # fmt: skip


def _series(events: Sequence[Mapping[str, Any]], line: _Line) -> Series:
    points = tuple(
        (event["step"], event[line.field] * line.scale) for event in events if is_number(event.get(line.field))
    )
    return Series(name=line.name, points=points, colour=line.colour, has_dots=line.has_dots)


def _is_wide(series: Sequence[Series]) -> bool:
    values = [value for each in series for _, value in each.points]
    return bool(values) and min(values) > 0 and max(values) > LOG_FROM * min(values)
