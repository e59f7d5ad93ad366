"""Curves and histograms as SVG for a page: colours come from the page's style, values show on hovering, no script."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from sft.common.data_records import LengthReport
from sft.reporting.report.curves import Curve, Series

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 12, 36
_POINTS = 400
"""Maximum per line; a long run has more points than a plot can show."""
_HOVERS = 80
"""Columns of a plot that show values on hovering."""
_DOTS = 60
"""Maximum number of points that are drawn as dots."""

Scale = Callable[[float], float]


def curve_svg(curve: Curve) -> Markup:
    """A plot of lines over steps."""
    xs = [x for series in curve.series for x, _ in series.points]
    ys = [y for series in curve.series for _, y in series.points]
    x_ticks = _linear_ticks(min(xs), max(xs), 5)
    low, high = (0.0 if curve.from_zero else min(ys)), max(ys)
    y_ticks = _log_ticks(low, high) if curve.is_log else _linear_ticks(low, high, 5, is_covered=True)
    x_of = _scale((min(xs), max(xs)), (_LEFT, WIDTH - _RIGHT))
    bounds = _bounds(low, high, y_ticks, is_log=curve.is_log)
    y_of = _scale(bounds, (HEIGHT - _BOTTOM, _TOP), is_log=curve.is_log)
    lines = [_line(series, x_of, y_of) for series in curve.series]
    ring = None
    if curve.marked is not None:
        ring = element("circle", class_="ring", cx=_n(x_of(curve.marked[0])), cy=_n(y_of(curve.marked[1])), r=6)
    whole = all(float(tick).is_integer() for tick in x_ticks)
    return _picture(
        f"{curve.title} over steps",
        _y_axis(y_ticks, y_of),
        _x_axis([(tick, f"{tick:,.0f}" if whole else short(tick)) for tick in x_ticks], x_of, "step"),
        *lines,
        ring,
        _hovers(curve, x_of),
    )


def histogram_svg(lengths: LengthReport, limit: int | None) -> Markup:
    """The rows by length, with a line at `max_seq_length`."""
    edges, counts = lengths.bin_edges, lengths.bin_counts
    x_of = _scale((0, len(counts)), (_LEFT, WIDTH - _RIGHT))
    ticks = [tick for tick in _linear_ticks(0, max(counts), 4, is_covered=True) if float(tick).is_integer()]
    y_of = _scale((0, max(max(counts), ticks[-1])), (HEIGHT - _BOTTOM, _TOP))
    bars = []
    for index, count in enumerate(counts):
        first, last = edges[index], edges[index + 1] - 1
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        hover = element("title", f"{span} tokens: {count:,} rows")
        left, right, top = x_of(index) + 1, x_of(index + 1) - 1, y_of(count)
        height = HEIGHT - _BOTTOM - top
        # A visible minimum for a bin with rows: one row among thousands must show.
        height = max(height, 1.5) if count else 0
        bar = element(
            "rect", class_="bar", x=_n(left), y=_n(HEIGHT - _BOTTOM - height), width=_n(right - left), height=_n(height)
        )
        slab = element(
            "rect", hover, class_="slab", x=_n(left), y=_TOP, width=_n(right - left), height=HEIGHT - _BOTTOM - _TOP
        )
        bars += [bar, slab]
    every = max(math.ceil(len(counts) / 6), 1)
    labels = [(index, f"{edges[index]:,}") for index in range(0, len(edges), every)]
    return _picture(
        "Row lengths",
        _y_axis(ticks, y_of),
        _x_axis(labels, x_of, "tokens per row"),
        *bars,
        _limit_mark(edges, limit, x_of),
    )


def _limit_mark(edges: Sequence[int], limit: int | None, x_of: Scale) -> Markup | None:
    """A line at `max_seq_length`, if it is within the range of the lengths."""
    if limit is None or not edges[0] <= limit < edges[-1]:
        return None
    index = bisect_right(edges, limit) - 1
    x = x_of(index + (limit + 1 - edges[index]) / (edges[index + 1] - edges[index]))
    is_left = x > WIDTH * 0.6
    label = element(
        "text",
        f"max_seq_length {limit:,}",
        class_="mark",
        x=_n(x - 5 if is_left else x + 5),
        y=_TOP + 10,
        text_anchor="end" if is_left else "start",
    )
    return joined(element("line", class_="limit", x1=_n(x), x2=_n(x), y1=_TOP, y2=HEIGHT - _BOTTOM), label)


def short(value: float) -> str:
    """A number in few characters: `0.002`, `12k`, `3e-5`."""
    magnitude = abs(value)
    if magnitude >= 1e6:
        return f"{value / 1e6:.4g}M"
    if magnitude >= 1e4:
        return f"{value / 1e3:.4g}k"
    if magnitude >= 1e-4 or not magnitude:
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def rounded(value: float) -> str:
    """A number in few characters, of four significant digits."""
    return short(float(f"{value:.4g}"))


def _picture(label: str, *content: Markup | None) -> Markup:
    return element(
        "svg",
        *content,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )


def element(name: str, /, *content: str | None, **attributes: object) -> Markup:
    """An element; text and attributes are escaped, `Markup` is not.

    Args:
        name: of the element.
        content: None is skipped.
        attributes: a trailing underscore is removed (`class_`), other underscores become hyphens.
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    inner = joined(*content)
    return Markup(f"<{name}{given}>{inner}</{name}>" if inner else f"<{name}{given}/>")


def joined(*content: str | None) -> Markup:
    """The concatenation; text is escaped, `Markup` is not, None is skipped."""
    return Markup("").join(piece for piece in content if piece is not None)


def _scale(values: tuple[float, float], positions: tuple[float, float], *, is_log: bool = False) -> Scale:
    low, high = map(math.log10, values) if is_log else values
    span = (high - low) or 1.0

    def position_of(value: float) -> float:
        scaled = math.log10(value) if is_log else value
        return positions[0] + (scaled - low) / span * (positions[1] - positions[0])

    return position_of


def _bounds(low: float, high: float, ticks: Sequence[float], *, is_log: bool) -> tuple[float, float]:
    """The ends of the axis: the outermost ticks or values."""
    if is_log:
        return min(low, ticks[0]), max(high, ticks[-1])
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    return (low, high) if high > low else (low, low + 1)


def _linear_ticks(low: float, high: float, about: int, *, is_covered: bool = False) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart: within the values, or covering all of them."""
    rough = (high - low) / about
    if rough < sys.float_info.min:  # equal, or too close for a power of ten
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if is_covered:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    else:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)] or [low]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that cover the values; with few of them, also 2 and 5 times each."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 3 else (1, 2, 5)
    every = math.ceil(len(powers) / 7)
    ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
    below = max((tick for tick in ticks if tick <= low), default=ticks[0])
    above = min((tick for tick in ticks if tick >= high), default=ticks[-1])
    return [tick for tick in ticks if below <= tick <= above]


def _y_axis(ticks: Sequence[float], y_of: Scale) -> Markup:
    pieces = []
    for tick in ticks:
        y = _n(y_of(tick))
        pieces.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y))
        pieces.append(element("text", short(tick), x=_LEFT - 7, y=_n(y_of(tick) + 4), text_anchor="end"))
    return joined(*pieces)


def _x_axis(ticks: Sequence[tuple[float, str]], x_of: Scale, title: str) -> Markup:
    base = HEIGHT - _BOTTOM
    pieces = [element("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base)]
    for tick, label in ticks:
        x = x_of(tick)
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        pieces.append(element("line", class_="axis", x1=_n(x), x2=_n(x), y1=base, y2=base + 4))
        pieces.append(element("text", label, x=_n(x), y=base + 17, text_anchor=anchor))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    pieces.append(element("text", title, class_="mark", x=_n(middle), y=HEIGHT - 5, text_anchor="middle"))
    return joined(*pieces)


def _line(series: Series, x_of: Scale, y_of: Scale) -> Markup:
    points = thinned(series.points, _POINTS)
    path = "M" + "L".join(f"{_n(x_of(x))} {_n(y_of(y))}" for x, y in points)
    pieces = [element("path", class_=f"line c{series.colour}", d=path)]
    if len(points) == 1 or (series.has_dots and len(points) <= _DOTS):
        pieces += [
            element("circle", class_=f"dot c{series.colour}", cx=_n(x_of(x)), cy=_n(y_of(y)), r=3) for x, y in points
        ]
    return joined(*pieces)


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: the lowest and the highest of each interval, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = len(points) / (most // 2)
    kept: list[tuple[float, float]] = []
    for number in range(most // 2):
        interval = range(int(number * size), int((number + 1) * size))
        lowest = min(interval, key=lambda index: points[index][1])
        highest = max(interval, key=lambda index: points[index][1])
        kept += [points[index] for index in sorted({lowest, highest})]
    return [points[0], *kept[1:-1], points[-1]]


def _hovers(curve: Curve, x_of: Scale) -> Markup:
    """Invisible columns that show the values of their step on hovering."""
    steps = sorted({x for series in curve.series for x, _ in series.points})
    if len(steps) > _HOVERS:
        steps = [steps[round(n * (len(steps) - 1) / (_HOVERS - 1))] for n in range(_HOVERS)]
    middles = [(x_of(a) + x_of(b)) / 2 for a, b in pairwise(steps)]
    bounds = [_LEFT, *middles, WIDTH - _RIGHT]
    values = [(series.name, dict(series.points)) for series in curve.series]
    unit = f" {curve.unit}" if curve.unit else ""
    slabs = []
    for step, left, right in zip(steps, bounds, bounds[1:], strict=False):
        lines = [f"step {step:,.0f}"]
        lines += [f"{name}: {found[step]:.5g}{unit}" for name, found in values if step in found]
        if curve.marked is not None and step == curve.marked[0]:
            lines.append(curve.marked_as)
        slabs.append(
            element(
                "rect",
                element("title", "\n".join(lines)),
                class_="slab",
                x=_n(left),
                y=_TOP,
                width=_n(right - left),
                height=HEIGHT - _BOTTOM - _TOP,
            )
        )
    return joined(*slabs)


def _n(value: float) -> str:
    """A coordinate in few characters."""
    return f"{value:.1f}".rstrip("0").rstrip(".")
