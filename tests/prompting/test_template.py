"""A chat template: its end marker, and what is wrong with it."""

import pytest

from sft.common.errors import ConfigError
from sft.prompting.rendering import ChatRenderer
from tests.support import messages
from tests.support.chat_templates import END, LOOP, TURNS, TWO, WHOLE, chat_of, mark_spans
from tests.support.prompts import CHATML, FAMILIES, conversation_with, trained_texts


@pytest.mark.parametrize(
    ("template", "expected"),
    [(template, form.format("").strip() + end_of_text) for template, form, end_of_text in FAMILIES.values()]
    + [("{% for m in messages %}{{ m.content }}\n\n{% endfor %}", "")]
    + [("{% for m in messages %}{{ m.content }}\n### End\n{% endfor %}", "\n### End")],
)
def test_chat_renderer_knows_the_end_marker(data_with_template, template, expected):
    assert ChatRenderer(data_with_template(template)).end_marker == expected


def test_chat_renderer_supports_a_template_that_requires_a_system_message(data_with_template):
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    renderer = ChatRenderer(data_with_template(insists))
    assert trained_texts(renderer.render(conversation_with("a", "b", system="S"))) == ["b<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", r"chat_template: it cannot render a question and an answer: .*\. Fix it"),
        ("{{ nothing.there }}", r"cannot render a question and an answer: 'nothing' is undefined"),
        ("{{ raise_exception('never') }}", r"cannot render a question and an answer: never"),
        ("hello", r"chat_template: it does not write the assistant's content"),
    ],
)
def test_chat_renderer_refuses_a_broken_template(data_with_template, template, message):
    with pytest.raises(ConfigError, match=message):
        ChatRenderer(data_with_template(template))


@pytest.mark.parametrize(
    ("habit", "marked"),
    [
        ("next_turn_ends", "<|user|>\nHi<|assistant|>«\nYes<|user|>»\nBye<|assistant|>«\nNo</s>»"),
        ("words_only", "### user:\nHi\n### assistant:\n«Yes\n»### user:\nBye\n### assistant:\n«No\n</s>»"),
        ("plain", WHOLE["plain"]),
    ],
)
def test_render_adds_an_end_token_if_the_template_has_none(tokenizer_with, habit, marked):
    renderer = ChatRenderer(tokenizer_with(TURNS[habit]), add_end_token=True)
    for _ in range(2):
        assert mark_spans(renderer.render(chat_of(*TWO))) == marked
    assert not mark_spans(renderer.render(chat_of(*TWO, "q"))).endswith("</s>")


def test_chat_renderer_refuses_a_template_that_prints_parts_as_python(tokenizer_with):
    with pytest.raises(ConfigError, match=messages.NOT_WRITTEN):
        ChatRenderer(tokenizer_with(LOOP + "{{ m.content[:3] }}" + END))


def test_end_token_ids_are_the_end_marker_and_the_end_of_text(tokenizers):
    tokenizer = tokenizers["known"]
    end, back, user, eos = tokenizer.convert_tokens_to_ids(["<|end|>", "<|return|>", "<|user|>", "</s>"])
    expected = {"plain": [end, eos], "returns": [back, eos], "next_turn_ends": [user, eos], "ends_between": [end, eos]}
    for habit, ids in expected.items():
        tokenizer.chat_template = TURNS[habit]
        assert ChatRenderer(tokenizer).end_token_ids() == ids, habit
