"""Untrusted text in Markdown stays text, by kind of markup and in every renderer."""

from __future__ import annotations

import re

import pytest

from sft.common.markdown import Markdown, escape_markdown, fenced, markdown_table
from sft.common.text import reveal
from tests.support.rendered_markdown import ATTACKS, HIDDEN, active_tags, renderings, text_of


def shown(text: str) -> str:
    return re.sub(r"[ \t\n]+", " ", reveal(text)).strip()


@pytest.mark.parametrize("kind", ATTACKS)
def test_escaped_text_is_shown_as_text(kind):
    escaped = escape_markdown(ATTACKS[kind])
    assert "\n" not in escaped
    assert not HIDDEN & set(escaped)
    for renderer, html in renderings(escaped).items():
        assert not active_tags(html), renderer
        assert text_of(html) == shown(ATTACKS[kind]), renderer
        assert html.count("<p>") == 1, renderer


@pytest.mark.parametrize("kind", ATTACKS)
def test_table_cells_are_shown_as_text(kind):
    text = ATTACKS[kind]
    table = markdown_table(("name", text), [(text, "x"), ("y", text)])
    for renderer, html in renderings(table).items():
        assert not active_tags(html), renderer
        cells = [text_of(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", html)]
        assert cells == ["name", shown(text), shown(text), "x", "y", shown(text)], renderer


@pytest.mark.parametrize("kind", ATTACKS)
def test_fenced_text_is_shown_verbatim(kind):
    block = fenced(ATTACKS[kind])
    assert not HIDDEN & set(block)
    for renderer, html in renderings(f"before\n\n{block}\n\nafter").items():
        assert not active_tags(html), renderer
        assert text_of(html) == f"before {shown(ATTACKS[kind])} after", renderer


@pytest.mark.parametrize("text", ["see http://x.org", "www.x.org", "me@x.org", "https://x.org/a_b"])
def test_bare_addresses_are_broken_up_for_renderers_that_link_them(text):
    assert not re.search(r"://|www\.|@", escape_markdown(text))


def test_plain_text_is_not_escaped():
    text = "learning_rate 2e-5, 50.0% (-1.5), a/b-c.jsonl:3, it's 3 < 4? no: v2.0!"
    assert escape_markdown(text) == text.replace("<", "&#60;")
    assert markdown_table(("",), [("-12.5%",)]).endswith("| -12.5% |")


def test_markdown_is_not_escaped_again():
    escaped = escape_markdown("*a*")
    assert escape_markdown(escaped) is escaped
    assert markdown_table(("a",), [(Markdown("`b`"),)]).endswith("| `b` |")
