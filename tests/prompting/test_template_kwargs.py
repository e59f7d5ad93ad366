"""Arguments of chat templates: of the run, of a source and of a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.common.data_records import Conversation
from sft.common.errors import ConfigError
from sft.prompting.refusal import RowRefused
from sft.prompting.rendering import ChatRenderer
from sft.prompting.template_kwargs import check_kwargs, row_kwargs, unread_kwargs
from tests.support.chat_templates import MARKERS, TOOL_TURNS, TURNS, TWO, WHOLE, chat_of, mark_spans
from tests.support.small_models import build_tokenizer

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and m.reasoning_content and enable_thinking is not false %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As those of hybrid reasoning models."""
QUESTION = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
THOUGHT = {**ANSWER, "reasoning_content": "A greeting."}
CONVERSATIONS = {
    "one turn": (QUESTION, ANSWER),
    "thoughts": (QUESTION, THOUGHT),
    "thoughts, then none": (QUESTION, THOUGHT, QUESTION, ANSWER),
    "none, then thoughts": (QUESTION, ANSWER, QUESTION, THOUGHT),
    "thoughts in all turns": (QUESTION, THOUGHT, QUESTION, THOUGHT),
    "system": ({"role": "system", "content": "Be brief."}, QUESTION, THOUGHT),
    "thoughts in the content": (QUESTION, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello."}),
    "many lines": (QUESTION, {"role": "assistant", "content": "A\n\n B \n"}),
    "markers of another template": ({"role": "user", "content": "<|user|> [INST]"}, ANSWER),
    "other letters": ({"role": "user", "content": "Grüße 你好"}, {**THOUGHT, "content": "😀"}),
}
"""Ten, with reasoning."""


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": True}, {"enable_thinking": False}, {"date": "1 May"}])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_text_is_that_of_the_tokenizer_with_the_same_arguments(name, kwargs):
    tokenizer = build_tokenizer(THINKING)
    messages = CONVERSATIONS[name]
    rendered = ChatRenderer(tokenizer).render(Conversation(messages=messages, template_kwargs=kwargs))
    expected = tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs)
    assert rendered.text == expected
    assert rendered.unread_keys == (("chat_template_kwargs.date",) if "date" in kwargs else ())


TEMPLATES = {**TURNS, **{f"tools, {name}": template for name, template in TOOL_TURNS.items()}}
WRITTEN = "{{ suffix | default('') if m.role == 'user' else '' }}"


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if "{{ m.content }}" in template])
def test_every_template_gets_the_arguments(name):
    """What only an argument writes appears behind each question, and the same characters are trained."""
    tokenizer = tokenizer_with(TEMPLATES[name].replace("{{ m.content }}", "{{ m.content }}" + WRITTEN))
    plain, other = ChatRenderer(tokenizer), ChatRenderer(tokenizer)
    compared = 0
    for messages in CONVERSATIONS.values():
        rows = []
        for renderer, kwargs in ((plain, {}), (other, {"suffix": "Zq"})):
            try:
                rows.append(renderer.render(Conversation(messages=messages, template_kwargs=kwargs)))
            except RowRefused as refusal:
                rows.append(refusal.problem.reason)
        if isinstance(rows[0], str):
            assert rows[1] == rows[0]
            continue
        compared += 1
        assert "Zq" in rows[1].text
        assert rows[1].text.replace("Zq", "") == rows[0].text
        assert trained(rows[1]) == trained(rows[0])
        assert rows[0].text == tokenizer.apply_chat_template(list(messages), tokenize=False)
    assert compared >= 4
    if name in WHOLE:  # marked by hand
        two = replace(chat_of(*TWO), template_kwargs={"suffix": "Zq"})
        assert mark_spans(other.render(two)).replace("Zq", "") == WHOLE[name]


def trained(row):
    return [row.text[start:end] for start, end in row.trained_spans]


def tokenizer_with(template):
    tokenizer = build_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    return tokenizer


def test_mixed_rows_of_one_call_each_have_their_own_arguments():
    renderer = ChatRenderer(build_tokenizer(THINKING))
    kwargs = [{"enable_thinking": thinks} for thinks in (True, False, True, False)]
    rows = renderer.render_all([Conversation(messages=(QUESTION, THOUGHT), template_kwargs=each) for each in kwargs])
    assert ["<think>" in row.text for row in rows] == [True, False, True, False]
    assert trained(rows[0]) == ["<think>\nA greeting.\n</think>\n\nHello.<|im_end|>"]
    assert trained(rows[1]) == ["Hello.<|im_end|>"]


def test_a_prompt_has_the_arguments_of_the_renderer_or_its_own():
    renderer = ChatRenderer(build_tokenizer(THINKING), template_kwargs={"enable_thinking": False})
    assert renderer.render_prompt([QUESTION]).endswith("</think>\n\n")
    assert renderer.render_prompt([QUESTION], template_kwargs={}).endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, {"a": 1}),
        ("", {"a": 1}),
        ({"b": True}, {"a": 1, "b": True}),
        ('{"a": 2}', {"a": 2}),
        ({"a": None, "b": [1]}, {"a": 1, "b": [1]}),
    ],
)
def test_the_arguments_of_a_row_come_before_those_of_its_source(value, expected):
    assert row_kwargs({"chat_template_kwargs": value}, {"a": 1}) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [("{", "is not JSON: '{'"), ("[1]", "must be an object, found"), ({"tools": 1}, "'tools' is given by the program")],
)
def test_a_row_with_other_arguments_is_refused(value, message):
    with pytest.raises(RowRefused, match="chat_template_kwargs") as raised:
        row_kwargs({"chat_template_kwargs": value}, {})
    assert raised.value.problem.reason == "bad_template_kwargs"
    assert message in raised.value.problem.message


def test_arguments_that_the_template_does_not_read():
    assert unread_kwargs({"enable_thinking": True, "thinking": 1}, THINKING) == ("thinking",)
    with pytest.raises(ConfigError, match=r"does not read 'enable_thinkin'.* Did you mean 'enable_thinking'"):
        check_kwargs({"enable_thinkin": False}, THINKING, "chat_template_kwargs")


def test_many_different_arguments_are_rendered_too():
    renderer = ChatRenderer(build_tokenizer("{{ date }}" + THINKING))
    rows = [Conversation(messages=(QUESTION, ANSWER), template_kwargs={"date": f"{day} May"}) for day in range(70)]
    assert [row.text.partition("<")[0] for row in renderer.render_all(rows)] == [f"{day} May" for day in range(70)]
