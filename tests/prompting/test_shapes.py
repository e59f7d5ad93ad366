"""Conversations of a known shape are rendered once, with the same result."""

import random

import pytest

import sft.prompting.rendering
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer
from tests.support.chat_templates import MARKERS, TURNS, chat_of, mark_spans


def _random_content(rng):
    pieces = ["a", "b c", " ", "\n", "Hello", "<think>", "</think>", "<think>\n", "<result>", "\u00a0", "x", *MARKERS]
    if rng.random() < 0.5:
        return rng.choice(["Hi", "Well, well.", "x"])
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 5)))


@pytest.mark.parametrize("habit", TURNS)
def test_render_of_a_known_shape_equals_that_of_a_new_one(tokenizer_with, habit):
    """What was rendered before changes nothing."""
    rng = random.Random(habit)
    tokenizer = tokenizer_with(TURNS[habit])
    used = ChatRenderer(tokenizer)
    for _ in range(60):
        roles = rng.choice(["ua", "sua", "uaua", "uaa", "uau"])
        conversation = chat_of(*(_random_content(rng) for _ in roles), roles=roles)
        (quick,), (fresh,) = used.render_all([conversation]), ChatRenderer(tokenizer).render_all([conversation])
        if isinstance(fresh, RowRefused):
            assert quick.problem == fresh.problem
        else:
            assert quick == fresh


def test_render_all_locates_the_turns_of_each_shape_once(tokenizer_with, monkeypatch):
    looked_at = []
    find_turns = sft.prompting.rendering.find_turns
    monkeypatch.setattr(
        sft.prompting.rendering,
        "find_turns",
        lambda template, conversation, text: looked_at.append(text) or find_turns(template, conversation, text),
    )
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]))
    rows = [chat_of(f"q{number}", f"a{number}") for number in range(20)] + [chat_of("q", "a", "r", "b")] * 5
    rendered = renderer.render_all(rows)
    assert len(looked_at) == 2
    assert [mark_spans(row) for row in rendered[:20]] == [
        f"<|user|>q{number}<|end|><|assistant|>«a{number}<|end|>»" for number in range(20)
    ]
