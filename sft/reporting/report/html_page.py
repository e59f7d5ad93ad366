"""`report.html`: the facts of a run as one page that opens from disk, without scripts or network access."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Template

from sft.common.text import share_text
from sft.reporting.report.facts import Histogram, ReportFacts
from sft.reporting.report.records import AnsweredPrompt, StepAnswer
from sft.reporting.report.svg import curve_svg, histogram_svg, rounded
from sft.reporting.templates import html_environment

SECONDS_TO_RELOAD = 30
MAX_CHARACTERS = 6000
"""Of a sample; the middle of a longer one is omitted."""
MAX_ANSWERS_BETWEEN = 10
"""Answers to a prompt shown between the first and the last."""


def report_html(facts: ReportFacts) -> str:
    """The page: well-formed XML after its first line."""
    sections = ["Verdicts", "Results", "Curves", "Experts", "Samples", "Data", "Settings", "Environment"]
    sections += ["Reproduce", "Usage"]
    if not facts.experts:
        sections.remove("Experts")
    if not facts.prompts:
        sections.remove("Samples")
    if not facts.curves:
        sections.remove("Curves")
    return _template().render(facts=facts, sections=sections, seconds_to_reload=SECONDS_TO_RELOAD)


@cache
def _template() -> Template:
    environment = html_environment(Path(__file__).with_name("templates"))
    environment.filters.update(
        answer_label=_answer_label,
        between_label=_between_label,
        curve_svg=curve_svg,
        excerpt=_excerpt,
        histogram_svg=_histogram_svg,
        rounded=rounded,
        sample_evenly=_sample_evenly,
        share_text=share_text,
    )
    return environment.get_template("report.html.jinja")


def _answer_label(answer: StepAnswer) -> str:
    label = "before training" if answer.step == 0 else f"after step {answer.step:,}"
    if answer.ended is None:
        return label
    return f"{label}, {'ended with an end token' if answer.ended else 'cut off: no end token'}"


def _sample_evenly(answers: tuple[StepAnswer, ...]) -> tuple[StepAnswer, ...]:
    if len(answers) <= MAX_ANSWERS_BETWEEN:
        return answers
    last = len(answers) - 1
    return tuple(answers[round(n * last / (MAX_ANSWERS_BETWEEN - 1))] for n in range(MAX_ANSWERS_BETWEEN))


def _between_label(prompt: AnsweredPrompt, shown: tuple[StepAnswer, ...]) -> str:
    num_between = len(prompt.answers) - 2
    label = f"Answers in between ({num_between})"
    return label if len(shown) == num_between else f"{label}, {len(shown)} shown; all are in samples.jsonl"


def _excerpt(text: str) -> str:
    num_omitted = len(text) - MAX_CHARACTERS
    if num_omitted <= 0:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {num_omitted:,} characters ...]\n{text[-half:]}"


def _histogram_svg(histogram: Histogram) -> str:
    return histogram_svg(histogram.lengths, histogram.max_seq_length)
