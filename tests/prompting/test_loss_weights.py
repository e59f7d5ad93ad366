"""Weights in the loss, from records to tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from sft.prompting.formats import format_named
from sft.prompting.loss_weights import row_weight
from sft.prompting.messages import RowRefused, openai_messages
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.tokenizing import RowTokenizer
from tests.support.small_models import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def conversation_of(*turns, weight=1.0):
    roles = ("user", "assistant") * len(turns)
    messages = [{"role": role, **turn} for role, turn in zip(roles, turns, strict=False)]
    return replace(format_named("messages").convert({"messages": messages}), weight=weight)


def tokens_by_weight(tokenizer, conversation, **settings):
    """The text of each run of tokens of one weight, with the weight."""
    rendered = ChatRenderer(tokenizer, **settings).render(conversation)
    rows = RowTokenizer(tokenizer, is_chat=True, max_seq_length=200)([rendered])
    assert not rows.refusals
    if rows.weights is None:
        return None
    assert ((rows.labels != -100) <= (rows.weights > 0)).all()
    cuts = np.flatnonzero(np.diff(rows.weights)) + 1
    parts = zip(np.split(rows.input_ids, cuts), np.split(rows.weights, cuts), strict=True)
    return [(tokenizer.decode(ids), float(weights[0])) for ids, weights in parts]


@pytest.mark.parametrize(
    ("value", "found"),
    [(2, 2.0), ("0.5", 0.5), (" 3 ", 3.0), ("", 1.0), (None, 1.0), (Decimal("1.5"), 1.5), (1e-3, 1e-3), ("1e2", 100.0)],
)
def test_row_weight_of_numbers_and_of_numbers_as_text(value, found):
    assert row_weight({"weight": value}) == found


@pytest.mark.parametrize(
    "value",
    [-1, math.nan, math.inf, "nan", "-inf", "two", True, [1], {"a": 1}, 10**400, Decimal("sNaN"), "1_0"],
    ids=str,
)
def test_row_weight_refuses_what_is_no_number_from_0(value):
    with pytest.raises(RowRefused, match=r"the column 'weight' must be a number from 0, found ") as caught:
        row_weight({"weight": value})
    assert caught.value.problem.reason == "bad_weight"


def test_a_row_of_weight_0_has_nothing_to_train():
    with pytest.raises(RowRefused, match="its weight is 0") as caught:
        row_weight({"weight": "0"})
    assert caught.value.problem.reason == "nothing_to_train"


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf, "2", True, [1]], ids=str)
def test_openai_messages_refuses_a_weight_that_is_no_number_from_0(value):
    with pytest.raises(RowRefused, match=r"messages\[0\]: weight must be a number from 0, found ") as caught:
        openai_messages([{"role": "assistant", "content": "a", "weight": value}])
    assert caught.value.problem.reason == "bad_weight"


@pytest.mark.parametrize("weights", [(1e-20, 1e-20), (1e20, 1e20), (1e-200, 1e-200)])
def test_weights_whose_product_cannot_be_computed_are_refused(tokenizer, weights):
    conversation = conversation_of({"content": "q"}, {"content": "a", "weight": weights[0]}, weight=weights[1])
    with pytest.raises(RowRefused) as caught:
        ChatRenderer(tokenizer).render(conversation)
    assert caught.value.problem.reason == "bad_weight"


def test_weights_of_messages_and_of_the_row_multiply(tokenizer):
    turns = [{"content": "one"}, {"content": "two", "weight": 2}, {"content": "three"}, {"content": "four"}]
    found = tokens_by_weight(tokenizer, conversation_of(*turns, weight=1.5))
    assert [weight for _, weight in found] == [0, 3, 0, 1.5, 0][: len(found)]
    assert [text for text, weight in found if weight] == ["two<|im_end|>", "four<|im_end|>"]


def test_rows_without_weights_have_none(tokenizer):
    turns = [{"content": "one"}, {"content": "two", "weight": 1.0}, {"content": "three"}, {"content": "four"}]
    assert tokens_by_weight(tokenizer, conversation_of(*turns)) is None
    turns[1]["weight"] = 0  # as without weights: it is not trained
    assert tokens_by_weight(tokenizer, conversation_of(*turns)) is None


def test_prompts_are_trained_but_never_the_first_token_nor_what_the_row_excludes(tokenizer):
    turns = [{"content": "one"}, {"content": "two", "train": False}, {"content": "three"}, {"content": "four"}]
    found = tokens_by_weight(tokenizer, conversation_of(*turns, weight=4.0), prompt_weight=0.25)
    assert [weight for _, weight in found[:-1]] == [0, 1, 0, 1, 4]
    assert found[0][0] == "<|im_start|>"
    assert found[2][0] == "two<|im_end|>"
    assert found[4][0] == "four<|im_end|>"


def test_an_answer_that_is_not_the_last_is_part_of_the_prompt_with_train_on_last(tokenizer):
    turns = [{"content": "one"}, {"content": "two"}, {"content": "three"}, {"content": "four"}]
    found = tokens_by_weight(tokenizer, conversation_of(*turns), only_last_turn=True, prompt_weight=0.5)
    assert [weight for _, weight in found[:3]] == [0, 0.5, 1]
    assert "two" in found[1][0]


def test_an_excluded_answer_that_cannot_be_located_is_refused_where_prompts_are_trained(tokenizer):
    messages = [
        {"role": "assistant", "content": "hi", "train": False},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    conversation = format_named("messages").convert({"messages": messages})
    assert ChatRenderer(tokenizer).render(conversation).trained_spans
    with pytest.raises(RowRefused) as caught:
        ChatRenderer(tokenizer, prompt_weight=0.5).render(conversation)
    assert caught.value.problem.reason == "no_prompt"


def test_every_token_of_a_plain_text_has_the_weight_of_its_row(tokenizer):
    conversations = [replace(format_named("text").convert({"text": "a b c"}), weight=weight) for weight in (0.5, 1.0)]
    rows = RowTokenizer(tokenizer, is_chat=False, max_seq_length=50)([render_text(one) for one in conversations])
    first = rows.lengths[0]
    assert rows.weights[1:first].tolist() == [0.5] * (first - 1)
    assert rows.weights[first + 1 :].tolist() == [1.0] * (rows.lengths[1] - 1)


def test_truncation_counts_answers_whatever_prompts_weigh(tokenizer):
    turns = [{"content": "question " * 20}, {"content": "answer " * 20}]
    rendered = [ChatRenderer(tokenizer, prompt_weight=weight).render(conversation_of(*turns)) for weight in (0, 0.5)]
    limit = len(tokenizer(rendered[0].text)["input_ids"]) - 5
    plain, found = (RowTokenizer(tokenizer, is_chat=True, max_seq_length=limit)([one]) for one in rendered)
    assert found.num_supervised == plain.num_supervised
    assert found.lost_end == plain.lost_end == [True]
    assert (found.labels == plain.labels).all()
    assert len(found.weights) == len(found.labels)
    refused = RowTokenizer(tokenizer, is_chat=True, max_seq_length=10)(rendered).refusals
    assert [one.problem.reason for one in refused.values()] == ["nothing_left_after_truncation"] * 2


def test_segments_show_weights(tokenizer):
    conversation = conversation_of({"content": "one"}, {"content": "two", "weight": 2})
    rendered = ChatRenderer(tokenizer, prompt_weight=0.5).render(conversation)
    found = RowTokenizer(tokenizer, is_chat=True, max_seq_length=50).segments(rendered)
    expected = [(False, 0), (False, 0.5), (True, 2), (False, 0.5)]
    assert [(one.trained, one.weight) for one in found] == expected[: len(found)]
    assert "".join(one.text for one in found) == rendered.text
