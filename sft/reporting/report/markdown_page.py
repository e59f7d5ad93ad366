"""`report.md`: the facts of a run for a terminal or a pull request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from sft.reporting.report.curves import Curve
from sft.reporting.report.facts import ReportFacts, Table
from sft.reporting.report.markup import shown
from sft.reporting.report.records import AnsweredPrompt
from sft.reporting.report.svg import short, thinned
from sft.reporting.report.verdicts import BAD, GOOD, UNKNOWN, WARN

SIGNS = {GOOD: "✓", WARN: "!", BAD: "✗", UNKNOWN: "?"}
LONGEST_ANSWER = 2000
_BARS = "▁▂▃▄▅▆▇█"
_SPARKS = 40


def report_markdown(facts: ReportFacts) -> str:
    """The whole report."""
    lines = [f"# {_text(facts.title)}", "", _text(facts.subtitle), "", f"**{_text(facts.headline)}**", ""]
    lines += [f"Status: {facts.status}. Written {_text(facts.written_at)}.", "", "## Verdicts", ""]
    for verdict in facts.verdicts:
        lines.append(
            f"- {SIGNS[verdict.state]} **{verdict.question}** {_text(verdict.sentence)} {_text(verdict.figures)}"
        )
        lines.append(f"  *{_text(verdict.rule)}*")
    if facts.scores is not None:
        lines += ["", "## Before and after", "", *_table(facts.scores)]
    lines += ["", "## Training", "", *_table(facts.training)]
    if facts.curves:
        lines += ["", "## Curves", "", *_fenced("\n".join(_sparks(facts.curves)))]
    if facts.prompts:
        lines += ["", "## Samples", "", *_samples(facts)]
    lines += ["", "## Data", "", *_table(facts.rows), "", *_table(facts.sources)]
    if facts.dropped is not None:
        lines += ["", *_table(facts.dropped)]
    for histogram in facts.histograms:
        found = histogram.lengths
        told = f"first bin from {found.bin_edges[0]:,}, last to {found.bin_edges[-1] - 1:,} tokens"
        lines += ["", f"Rows of {histogram.split} by length ({told}): `{_bars(found.bin_counts)}`"]
    lines += ["", "## Settings that were given", "", *_table(facts.given)]
    lines += [
        "",
        "<details><summary>Every setting</summary>",
        "",
        *_fenced(facts.settings_yaml, "yaml"),
        "",
        "</details>",
    ]
    lines += ["", "## Environment", "", *_table(facts.environment)]
    lines += ["", "## Again", "", *_fenced(facts.reproduce, "bash"), "", *_table(facts.digests)]
    lines += ["", "## Use", "", _text(facts.use_note)]
    if facts.use:
        lines += ["", *_fenced(facts.use, "python")]
    return shown("\n".join(lines)) + "\n"


def _table(table: Table) -> Iterator[str]:
    yield _row(table.header)
    yield _row(["---"] * len(table.header), is_text=False)
    yield from map(_row, table.rows)


def _row(cells: Sequence[str], *, is_text: bool = True) -> str:
    return "| " + " | ".join(_text(cell) if is_text else cell for cell in cells) + " |"


def _text(text: str) -> str:
    """On one line, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(text.split("\n"))
    # An underscore within a word is plain text.
    return re.sub(r"([\\`*{}\[\]<>|~&]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def _fenced(text: str, language: str = "") -> list[str]:
    """A block that shows text as it is: its fence is longer than any row of backticks in the text."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language or 'text'}", *text.split("\n"), fence]


def _samples(facts: ReportFacts) -> Iterator[str]:
    for number, prompt in enumerate(facts.prompts, start=1):
        yield from ("", f"### {number}", "", *_fenced("\n".join(_answers(prompt))))
    if facts.num_prompts > len(facts.prompts):
        yield from ("", f"The first {len(facts.prompts)} of {facts.num_prompts} prompts.")


def _answers(prompt: AnsweredPrompt) -> Iterator[str]:
    yield f"prompt  {_shortened(prompt.prompt)}"
    for place, answer in enumerate(prompt.answers):
        if 0 < place < len(prompt.answers) - 1:
            continue
        name = "before" if answer.step == 0 else f"step {answer.step:,}"
        cut = "" if answer.ended in (None, True) else "  [did not end]"
        yield f"{name:<7} {_shortened(answer.text)}{cut}"
    if prompt.reference is not None:
        yield f"data    {_shortened(prompt.reference)}"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_ANSWER else f"{text[:LONGEST_ANSWER]} [... {len(text) - LONGEST_ANSWER:,} more]"


def _sparks(curves: Sequence[Curve]) -> Iterator[str]:
    """A line for each series: its shape, and its first and last value."""
    for curve in curves:
        unit = f" {curve.unit}" if curve.unit else ""
        for series in curve.series:
            values = [math.log(value) if curve.is_log else value for _, value in thinned(series.points, _SPARKS)]
            ends = " -> ".join(short(float(f"{value:.4g}")) for _, value in (series.points[0], series.points[-1]))
            name = series.name if series.name == curve.title.lower() else f"{curve.title.lower()}, {series.name}"
            yield f"{name:<34} {_bars(values):<{_SPARKS}}  {ends}{unit}"


def _bars(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    span = (high - low) or 1
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)
