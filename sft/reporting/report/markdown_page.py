"""`report.md`: the facts of a run for a terminal or a pull request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Template

from sft.common.markdown import Markdown, markdown_table
from sft.reporting.report.curves import Curve
from sft.reporting.report.facts import Histogram, ReportFacts, Table
from sft.reporting.report.records import AnsweredPrompt
from sft.reporting.report.svg import rounded, thinned
from sft.reporting.templates import markdown_environment

MAX_ANSWER_CHARACTERS = 2000
_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 40


def report_markdown(facts: ReportFacts) -> str:
    """The whole report."""
    return _template().render(facts=facts)


@cache
def _template() -> Template:
    environment = markdown_environment(Path(__file__).with_name("templates"))
    environment.filters.update(
        bars=_bars,
        bin_range=_bin_range,
        first_and_last_answer=_first_and_last_answer,
        sparklines=_sparklines,
        table=_table,
    )
    return environment.get_template("report.md.jinja")


def _table(table: Table) -> Markdown:
    return markdown_table(table.header, table.rows)


def _first_and_last_answer(prompt: AnsweredPrompt) -> str:
    lines = [f"prompt    {_shortened(prompt.prompt)}"]
    ends = prompt.answers if len(prompt.answers) < 2 else (prompt.answers[0], prompt.answers[-1])
    for answer in ends:
        name = "before" if answer.step == 0 else f"step {answer.step:,}"
        cut = "  [cut off: no end token]" if answer.ended is False else ""
        lines.append(f"{name:<9} {_shortened(answer.text)}{cut}")
    if prompt.reference is not None:
        lines.append(f"reference {_shortened(prompt.reference)}")
    return "\n".join(lines)


def _shortened(text: str) -> str:
    num_omitted = len(text) - MAX_ANSWER_CHARACTERS
    return text if num_omitted <= 0 else f"{text[:MAX_ANSWER_CHARACTERS]} [... {num_omitted:,} more characters]"


def _bin_range(histogram: Histogram) -> str:
    edges = histogram.lengths.bin_edges
    return f"first bin from {edges[0]:,}, last bin to {edges[-1] - 1:,} tokens"


def _sparklines(curves: Sequence[Curve]) -> str:
    return "\n".join(_sparkline_rows(curves))


def _sparkline_rows(curves: Sequence[Curve]) -> Iterator[str]:
    """A line for each series: its shape, and its first and last value."""
    for curve in curves:
        unit = f" {curve.unit}" if curve.unit else ""
        for series in curve.series:
            values = [math.log(value) if curve.is_log else value for _, value in thinned(series.points, _SPARKS)]
            ends = " -> ".join(rounded(value) for _, value in (series.points[0], series.points[-1]))
            name = series.name if series.name == curve.title.lower() else f"{curve.title.lower()}, {series.name}"
            yield f"{name:<34} {_bars(values):<{_SPARKS}}  {ends}{unit}"


def _bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span = (high - low) or 1
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)
