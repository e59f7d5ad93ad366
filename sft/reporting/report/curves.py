"""The curves of a report: which logged metrics share a plot, in which unit, on which scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.reporting.report.records import best_evaluation, is_number

LOG_FROM = 20
"""Ratio of the largest to the smallest value from which a plot uses a log scale, where that makes sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a plot."""

    name: str
    points: tuple[tuple[float, float], ...]
    """(step, value)."""
    colour: int
    """1 or 2, an index of the page's colours."""
    has_dots: bool = False

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One plot."""

    title: str
    unit: str
    series: tuple[Series, ...]
    from_zero: bool = False
    is_log: bool = False
    marked: tuple[float, float] | None = None
    """A point with a ring around it: the best validation loss."""
    marked_as: str = ""

    @property
    def scale_text(self) -> str:
        """Unit and scale: `nats/token, log scale`."""
        return ", ".join(part for part in (self.unit, "log scale" if self.is_log else "") if part)


@dataclass(frozen=True, slots=True)
class _Line:
    field: str
    """Name in `metrics.jsonl`."""
    name: str
    colour: int
    has_dots: bool = False
    scale: float = 1.0
    """Logged value -> unit of the plot."""


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    unit: str
    lines: tuple[_Line, ...]
    from_zero: bool = True
    may_be_log: bool = False


_PLOTS = (
    _Plot(
        "Loss, unweighted",
        "nats/token",
        (_Line("loss_unweighted", "training", 1), _Line("eval_loss_unweighted", "validation", 2, True)),
        may_be_log=True,
    ),
    _Plot(
        "Token accuracy",
        "%",
        (_Line("token_accuracy", "training", 1, False, 100), _Line("eval_token_accuracy", "validation", 2, True, 100)),
    ),
    _Plot("Sequence accuracy", "%", (_Line("eval_sequence_accuracy", "validation", 2, True, 100),)),
    _Plot(
        "Expert load",
        "%",
        (
            _Line("eval_expert_max_share", "most chosen", 1, True, 100),
            _Line("eval_expert_min_share", "least chosen", 2, True, 100),
        ),
    ),
    _Plot("Learning rate", "", (_Line("learning_rate", "learning rate", 1),)),
    _Plot("Gradient norm", "", (_Line("grad_norm", "gradient norm", 1),), from_zero=False, may_be_log=True),
    _Plot(
        "Throughput",
        "tokens/s",
        (_Line("tokens_per_second", "all tokens", 1), _Line("supervised_tokens_per_second", "supervised tokens", 2)),
    ),
    _Plot(
        "Memory",
        "GiB",
        (
            _Line("memory_allocated_bytes", "allocated", 1, False, 2**-30),
            _Line("peak_memory_bytes", "peak", 2, False, 2**-30),
        ),
    ),
    _Plot(
        "Utilization",
        "%",
        (_Line("cpu_utilization", "CPU", 1, False, 100), _Line("gpu_utilization", "GPU", 2, False, 100)),
    ),
)


def find_curves(events: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The plots that have data; the loss first."""
    curves = [_loss_curve(events)]
    for plot in _PLOTS:
        series = tuple(found for line in plot.lines if (found := _series(events, line)).points)
        is_log = plot.may_be_log and _is_wide(series)
        from_zero = plot.from_zero and not is_log
        curves.append(Curve(title=plot.title, unit=plot.unit, series=series, from_zero=from_zero, is_log=is_log))
    return tuple(curve for curve in curves if curve.series)


def _loss_curve(events: Sequence[Mapping[str, Any]]) -> Curve:
    series = tuple(
        found
        for line in (_Line("loss", "training", 1), _Line("eval_loss", "validation", 2, True))
        if (found := _series(events, line)).points
    )
    best = best_evaluation([event for event in events if "eval_loss" in event])
    return Curve(
        title="Loss",
        unit="nats/token",
        series=series,
        is_log=_is_wide(series),
        marked=(best["step"], best["eval_loss"]) if best is not None else None,
        marked_as="best validation",
    )


def _series(events: Sequence[Mapping[str, Any]], line: _Line) -> Series:
    points = tuple(
        (event["step"], event[line.field] * line.scale) for event in events if is_number(event.get(line.field))
    )
    return Series(name=line.name, points=points, colour=line.colour, has_dots=line.has_dots)


def _is_wide(series: Sequence[Series]) -> bool:
    values = [value for each in series for _, value in each.points]
    return bool(values) and min(values) > 0 and max(values) > LOG_FROM * min(values)
