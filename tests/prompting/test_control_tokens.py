"""Control tokens in the strings of a conversation."""

import pytest

from sft.common.data_records import Conversation
from sft.prompting.control_tokens import ControlTokens
from tests.support.prompts import A, U, convert

CALL = {"function": {"name": "f", "arguments": {"x": ["<s>"]}}}


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([U, A], ()),
        ([U, {**A, "content": "a < b, <|im_end, <|other|> and [INST"}], ()),
        ([{**U, "content": "What is <|im_end|>?"}, A], ("<|im_end|>",)),
        ([U, {**A, "content": "x<|im_end|>y</s><|im_end|>"}], ("<|im_end|>", "</s>")),
        ([{"role": "system", "content": "[INST]"}, U, A], ("[INST]",)),
        ([U, {**A, "reasoning_content": "<|eot|>"}], ("<|eot|>",)),
        ([U, {**A, "tool_calls": [CALL]}], ("<s>",)),
        ([U, {**A, "tool_calls": [CALL]}, {"role": "tool", "content": "</s>"}, A], ("<s>", "</s>")),
    ],
)
def test_control_tokens_are_found_in_every_string(data_tokenizer, messages, found):
    conversation = convert({"messages": messages})
    assert ControlTokens(data_tokenizer)(conversation, str(messages)) == found


def test_control_tokens_that_the_template_leaves_out_do_not_count(data_tokenizer):
    conversation = convert({"messages": [{**U, "content": "<s></s>"}, A]})
    assert ControlTokens(data_tokenizer)(conversation, "<|user|></s>") == ("</s>",)


@pytest.mark.parametrize(
    ("text", "found"),
    [("<s>a b</s>", ()), ("a</s>b</s>", ("</s>",)), ("<|im_start|>user", ("<|im_start|>",)), ("", ())],
)
def test_control_tokens_may_begin_and_end_a_plain_text(data_tokenizer, text, found):
    assert ControlTokens(data_tokenizer)(Conversation(text=text), text) == found
