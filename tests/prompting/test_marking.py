"""Marks: in an ASCII text they leave a character one byte, and there are enough of them for any conversation."""

import sys

import pytest

from sft.prompting import marking
from sft.prompting.marking import PLACEMENTS, Marker
from sft.prompting.rendering import ChatRenderer
from tests.support.chat_templates import TURNS, chat_of

HOSTILE = ("a", "b\uf800", "\uf800c", "\uf801\ue001", "\ue000", "\uf802\uf802", "d", "\x80e\x9f")
"""Contents that have characters of marks, also where marks are put."""


def test_a_marked_text_of_ascii_takes_a_byte_a_character():
    words = "some words " * 1000
    marker = Marker([{"role": role, "content": words} for role in ("user", "assistant") * 4], PLACEMENTS[0], "")
    for message in marker.messages:
        assert sys.getsizeof(message["content"]) < 1.1 * len(words)


@pytest.mark.parametrize("contents", [HOSTILE, "plain words of few kinds only ..".split()], ids=["hostile", "plain"])
def test_marks_are_pairs_of_characters_if_there_are_many(tokenizer_with, monkeypatch, contents):
    tokenizer = tokenizer_with(TURNS["plain"])
    conversation = chat_of(*(contents[number % len(contents)] for number in range(200)))
    expected = ChatRenderer(tokenizer).render(conversation)
    assert len(expected.trained_spans) == 100
    monkeypatch.setattr(marking, "_FINAL", (range(0xE000, 0xE006),))
    marker = Marker(conversation.messages, PLACEMENTS[0], expected.text)
    assert len(marker.marks) == 400
    assert ChatRenderer(tokenizer).render(conversation) == expected
    text, marks = marker.split("".join(message["content"] for message in marker.messages))
    assert text == "".join(message["content"] for message in conversation.messages)
    assert [found.mark for found in marks] == [*marker.marks]
