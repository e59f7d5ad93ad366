"""`report.md`: complete, and untrusted text stays text."""

from __future__ import annotations

import re

from sft.reporting.report.facts import find_facts
from sft.reporting.report.markdown_page import report_markdown
from tests.support.report_records import evaluation, records, untrusted_records, with_experts


def test_markdown_shows_untrusted_text_as_text():
    text = report_markdown(find_facts(records(**untrusted_records())))
    text.encode()
    assert not set(text) & {"\x1b", "\x00", "\ud800", "\u202e"}
    outside = outside_of_fences(text)
    assert not re.search(r"(?<!\\)<script", outside)
    assert "# head" not in outside.splitlines()
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    for line, before in zip(rows[1:], rows, strict=False):
        if line.startswith("| ---"):
            assert cells(line) == cells(before)


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line))


def outside_of_fences(text):
    """The lines outside code blocks. A fence is closed by one that is at least as long."""
    kept, fence = [], ""
    for line in text.splitlines():
        found = re.match(r"(`{3,})(.*)$", line)
        if fence:
            fence = "" if found and len(found[1]) >= len(fence) and not found[2].strip() else fence
        elif found:
            fence = found[1]
        else:
            kept.append(line)
    return "\n".join(kept)


def test_markdown_has_the_facts_of_the_page():
    text = report_markdown(find_facts(records()))
    for verdict in find_facts(records()).verdicts:
        assert f"**{verdict.question}** {verdict.sentence}" in text
    for fact in (
        "| validation loss | 3.0000 | 1.0000 |",
        "| rows read | 100 | 100 |",
        "before    Hm.  [cut off: no end token]",
        "step 100  Paris.",
        "reference Paris.",
        "loss, training",
        "3 -> 0.5 nats/token",
    ):
        assert fact in text, fact


def test_experts_of_each_layer_are_those_of_the_last_evaluation():
    events = [with_experts(evaluation(50, 2.0), dead=0), with_experts(evaluation(100, 1.0)), evaluation(100, 1.0)]
    text = report_markdown(find_facts(records(events=events)))
    assert "| layer | most chosen | least chosen | if even | never chosen |" in text
    assert "| 1 | 50.0% | 0.0% | 25.0% | 1 of 4 |" in text
    assert "| 12 | 50.0% | 0.0% | 25.0% | 1 of 4 |" in text
    assert "Experts" not in report_markdown(find_facts(records()))
