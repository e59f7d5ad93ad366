"""Markdown texts for trackers, rendered as TensorBoard does."""

from __future__ import annotations

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from sft.reporting.trackers.run_text import as_table, sample_text
from tests.support.rendered_markdown import ATTACKS, active_tags, text_of


def test_table_of_nested_values():
    assert as_table({"a": {"b": 1000, "c": []}, "d": "x|y\nz"}).splitlines()[2:] == [
        "| a.b | 1,000 |",
        "| a.c | none |",
        "| d | x\\|y z |",
    ]


def test_sample_text_shows_the_texts_verbatim():
    text = sample_text("# not a heading", "<b>\nbold", False, None)
    assert "\n# not a heading\n" in text
    assert "\n<b>\nbold\n" in text
    assert "cut off" in text
    assert "reference" not in text


@pytest.mark.parametrize("kind", ATTACKS)
def test_untrusted_text_stays_text_in_tensorboard(kind):
    text = ATTACKS[kind]
    for rendered in (as_table({"a": text, "b": {text: text}}), sample_text(text, text, True, text)):
        html = markdown_to_safe_html(rendered.encode(errors="replace"))
        assert not active_tags(html)
    assert "reference" in text_of(html)
