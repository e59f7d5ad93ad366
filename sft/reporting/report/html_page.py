"""`report.html`: the facts of a run as one page that opens from disk, without a script and without a network."""

from __future__ import annotations

from pathlib import Path

from sft.common.text import share_text
from sft.reporting.report.curves import Curve
from sft.reporting.report.facts import Histogram, ReportFacts, Table
from sft.reporting.report.markup import Markup, element, joined
from sft.reporting.report.records import AnsweredPrompt, StepAnswer
from sft.reporting.report.svg import curve_svg, histogram_svg, short
from sft.reporting.report.verdicts import BAD, GOOD, UNKNOWN, WARN, Verdict

SECONDS_TO_RELOAD = 30
LONGEST_TEXT = 6000
"""Characters of a sample that are shown; its middle is left out."""
SHOWN_BETWEEN = 10
"""Answers to a prompt between the first and the last that are shown."""
_SIGNS = {GOOD: "✓", WARN: "!", BAD: "✗", UNKNOWN: "?"}
_STATUS = {"running": UNKNOWN, "completed": GOOD, "stopped": WARN, "failed": BAD}
# Nothing is loaded and nothing is run, whatever the data says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_html(facts: ReportFacts) -> str:
    """The whole page; well-formed XML behind its first line."""
    body = element("main", _head(facts), *_sections(facts), _foot(facts))
    page = element("html", _page_head(facts), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _page_head(facts: ReportFacts) -> Markup:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    reload = element("meta", http_equiv="refresh", content=SECONDS_TO_RELOAD) if facts.is_running else None
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        reload,
        element("title", f"{facts.title}: {facts.status}"),
        element("style", Markup("\n" + style)),
    )


def _head(facts: ReportFacts) -> Markup:
    status = element("span", facts.status, class_=f"pill {_STATUS[facts.status]}")
    names = ["Verdicts", "Figures", "Curves", "Samples", "Data", "Settings", "Environment", "Again", "Use"]
    if not facts.prompts:
        names.remove("Samples")
    if not facts.curves:
        names.remove("Curves")
    return element(
        "header",
        element("div", element("h1", facts.title), status, class_="head"),
        element("p", facts.subtitle, class_="soft"),
        element("p", facts.headline, class_="headline"),
        element("nav", *(element("a", name, href=f"#{name.lower()}") for name in names)),
    )


def _sections(facts: ReportFacts) -> list[Markup]:
    sections = [
        _section("Verdicts", element("div", *map(_verdict, facts.verdicts), class_="grid")),
        _figures(facts),
    ]
    if facts.curves:
        sections.append(_section("Curves", element("div", *map(_curve, facts.curves), class_="grid pictures")))
    if facts.prompts:
        sections.append(_section("Samples", *map(_sample, facts.prompts), _more_prompts(facts)))
    every = element("details", element("summary", "Every setting"), element("pre", facts.settings_yaml))
    return [
        *sections,
        _section("Data", *_data(facts)),
        _section("Settings", _card(_table(facts.given, class_="breaks"), every)),
        _section("Environment", _card(_table(facts.environment))),
        _section("Again", _card(element("pre", facts.reproduce), _table(facts.digests))),
        _section("Use", _card(element("p", facts.use_note), element("pre", facts.use) if facts.use else None)),
    ]


def _section(name: str, *content: Markup | None) -> Markup:
    return element("section", element("h2", name), *content, id=name.lower())


def _card(*content: Markup | None, class_: str = "card") -> Markup:
    return element("div", *content, class_=class_)


def _verdict(verdict: Verdict) -> Markup:
    sign = element("span", _SIGNS[verdict.state], class_=f"sign {verdict.state}", aria_label=verdict.state)
    return element(
        "article",
        element("h3", sign, element("span", verdict.question)),
        element("p", verdict.sentence),
        element("p", verdict.figures, class_="figures") if verdict.figures else None,
        element("p", verdict.rule, class_="rule"),
        class_=f"card verdict {verdict.state}",
    )


def _figures(facts: ReportFacts) -> Markup:
    scores = None
    if facts.scores is not None:
        scores = _card(element("h3", "Before and after"), _table(facts.scores, class_="numbers"))
    training = _card(element("h3", "Training"), _table(facts.training))
    return element(
        "section", element("h2", "Figures"), element("div", scores, training, class_="grid pictures"), id="figures"
    )


def _curve(curve: Curve) -> Markup:
    sign = "%" if curve.unit == "%" else ""
    keys = [
        element("span", f"{series.name} {_rounded(series.points[-1][1])}{sign}", class_=f"key c{series.colour}")
        for series in curve.series
    ]
    if curve.marked is not None:
        step, value = curve.marked
        keys.append(element("span", f"{curve.marked_as} {_rounded(value)} at step {step:,}"))
    unit = ", ".join(part for part in (curve.unit, "log scale" if curve.is_log else "") if part)
    title = element("span", element("b", curve.title), f" {unit}" if unit else None)
    return element("figure", element("figcaption", title, *keys), curve_svg(curve), class_="card")


def _rounded(value: float) -> str:
    return short(float(f"{value:.4g}"))


def _sample(prompt: AnsweredPrompt) -> Markup:
    first, last, between = prompt.answers[0], prompt.answers[-1], prompt.answers[1:-1]
    sides = [_answer(first)] if first is last else [_answer(first), _answer(last)]
    reference = None
    if prompt.reference is not None:
        reference = joined(_label("the data's answer"), _quoted(prompt.reference))
    return element(
        "article",
        _label("prompt"),
        _quoted(prompt.prompt),
        element("div", *(element("div", side) for side in sides), class_="sides"),
        reference,
        _between(between) if between else None,
        class_="card sample",
    )


def _between(answers: tuple[StepAnswer, ...]) -> Markup:
    shown = answers
    if len(answers) > SHOWN_BETWEEN:
        shown = tuple(answers[round(n * (len(answers) - 1) / (SHOWN_BETWEEN - 1))] for n in range(SHOWN_BETWEEN))
    what = f"Answers in between ({len(answers)})"
    if len(shown) < len(answers):
        what += f", {len(shown)} of them; all are in samples.jsonl"
    return element("details", element("summary", what), *map(_answer, shown))


def _answer(answer: StepAnswer) -> Markup:
    when = "before training" if answer.step == 0 else f"after step {answer.step:,}"
    if answer.ended is not None:
        when += ", ended by itself" if answer.ended else ", did not end"
    return joined(_label(when), _quoted(answer.text))


def _label(text: str) -> Markup:
    return element("p", text, class_="label")


def _quoted(text: str) -> Markup:
    left_out = len(text) - LONGEST_TEXT
    if left_out > 0:
        text = f"{text[: LONGEST_TEXT // 2]}\n[... {left_out:,} characters ...]\n{text[-LONGEST_TEXT // 2 :]}"
    return element("pre", text, dir="auto")


def _more_prompts(facts: ReportFacts) -> Markup | None:
    if facts.num_prompts <= len(facts.prompts):
        return None
    return element("p", f"The first {len(facts.prompts)} of {facts.num_prompts} prompts.", class_="note")


def _data(facts: ReportFacts) -> list[Markup | None]:
    shares = [
        joined(
            element(
                "p", f"{name}: {share_text(share)} of the tokens are trained, the rest is only read", class_="label"
            ),
            element("div", element("i", style=f"width:{share:.2%}"), class_="share"),
        )
        for name, share in facts.trained_shares
    ]
    counts = _card(_table(facts.rows, class_="numbers"), *shares)
    pictures = element("div", *map(_histogram, facts.histograms), class_="stack") if facts.histograms else None
    return [
        element("div", counts, pictures, class_="grid pictures"),
        _card(_table(facts.sources, class_="breaks")),
        _card(element("h3", "Left out"), _table(facts.dropped)) if facts.dropped is not None else None,
    ]


def _histogram(histogram: Histogram) -> Markup:
    lengths = histogram.lengths
    caption = element(
        "figcaption",
        element("span", element("b", f"Rows by length, {histogram.split}")),
        element("span", f"median {lengths.median:,}, 99% up to {lengths.p99:,}, longest {lengths.longest:,} tokens"),
    )
    return element("figure", caption, histogram_svg(lengths, histogram.max_seq_length), class_="card")


def _table(table: Table, *, class_: str | None = None) -> Markup:
    head = None
    if any(table.header) and table.header != ("", "value"):
        head = element("thead", element("tr", *(element("th", name, scope="col") for name in table.header)))
    rows = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in table.rows
    ]
    return element("div", element("table", head, element("tbody", *rows), class_=class_), class_="scroll")


def _foot(facts: ReportFacts) -> Markup:
    text = f"Written {facts.written_at}."
    if facts.is_running:
        text += (
            f" This page is written again at each evaluation, and reloads itself every {SECONDS_TO_RELOAD} seconds "
            "until the run has ended. If it grows old, the run may have been killed."
        )
    else:
        text += " The figures behind it stand in run_summary.json and metrics.jsonl."
    return element("footer", text)
