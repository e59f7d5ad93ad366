"""Conversations that are too long, shortened to their latest turns."""

from functools import partial

import numpy as np
import pytest

from sft.common.data_records import Conversation, RenderedText
from sft.prompting.messages import RowRefused
from sft.prompting.shortening import first_turns, keep_last_turns, latest_turns
from sft.prompting.tokenizing import RowTooLong, TokenizedRow


def chat(roles, **options):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation(
        messages=tuple({"role": names[role], "content": f"{role}{index}"} for index, role in enumerate(roles)),
        **options,
    )


def contents(conversation):
    return [message["content"] for message in conversation.messages]


@pytest.mark.parametrize(
    ("roles", "untrained", "starts"),
    [("suauaua", (), [3, 5]), ("uatauu", (), []), ("uauatauau", (), [2, 6]), ("uaua", (3,), []), ("a", (), [])],
)
def test_first_turns_are_user_turns_before_a_trained_answer(roles, untrained, starts):
    assert first_turns(chat(roles, untrained=frozenset(untrained))) == starts


def test_latest_turns_keeps_the_system_turn_and_what_belongs_to_each_message():
    conversation = chat("suauaua", untrained=frozenset({2, 4}), other_keys={0: {"a": 1}, 2: {"b": 1}, 5: {"c": 1}})
    shorter = latest_turns(conversation, 3)
    assert contents(shorter) == ["s0", "u3", "a4", "u5", "a6"]
    assert (shorter.untrained, shorter.other_keys) == ({2}, {0: {"a": 1}, 3: {"c": 1}})


def rendered(conversations, costs, limit):
    """A token per unit of cost of each message, with a refusal of what is too long."""
    outcomes = []
    for conversation in conversations:
        length = sum(costs[text] for text in contents(conversation))
        row = TokenizedRow(
            input_ids=np.zeros(length, np.int32),
            labels=np.zeros(length, np.int32),
            full_length=length,
            lost_end=False,
            has_trained_end=True,
        )
        too_long = RowTooLong("too_long", f"it has {length} tokens", length, "end")
        text = RenderedText(text=" ".join(contents(conversation)), trained_spans=())
        outcomes.append((text, row) if length <= limit else too_long)
    return outcomes


def test_keep_last_turns_finds_the_longest_end_that_fits():
    generator = np.random.default_rng(0)
    for _ in range(500):
        roles = "s" * int(generator.integers(0, 2)) + "ua" * int(generator.integers(1, 9))
        conversation, limit = chat(roles), int(generator.integers(1, 30))
        costs = {text: int(generator.integers(1, 6)) for text in contents(conversation)}
        (whole,) = rendered([conversation], costs, limit)
        if not isinstance(whole, RowTooLong):
            continue
        (found,) = keep_last_turns([conversation], [whole], partial(rendered, costs=costs, limit=limit))
        fitting = [
            first
            for first in first_turns(conversation)
            if sum(costs[text] for text in contents(latest_turns(conversation, first))) <= limit
        ]
        if fitting:
            text, row = found
            assert text.text.split() == contents(latest_turns(conversation, fitting[0]))
            assert (row.is_shortened, row.full_length) == (True, whole.full_length)
            assert not row.was_truncated
        else:
            assert isinstance(found, RowTooLong)
            assert found.full_length == whole.full_length
            assert found.problem.message.startswith("its last exchange has ")


def test_keep_last_turns_gives_the_reason_why_the_last_exchange_cannot_be_rendered():
    refusal = RowRefused("template_refused", "no")
    too_long = RowTooLong("too_long", "it has 9 tokens", 9, "end")
    assert keep_last_turns([chat("uaua")], [too_long], lambda tried: [refusal for _ in tried]) == [refusal]
