"""Conversations to text with trained spans, by chat templates of the common families."""

import pytest

from sft.common.data_records import Conversation, RenderedText
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer
from tests.support.prompts import (
    CHATML,
    EOS_AT_THE_END,
    FAMILIES,
    MODEL_ROLE,
    conversation_with,
    decode_trained,
    tokenize,
    trained_texts,
)

STRIPS_THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set answer = m.content.split('</think>')[-1] %}"
    "{% if m.role != 'assistant' %}{{ m.content }}{% elif not loop.last %}{{ answer | trim }}"
    "{% elif '</think>' in m.content %}{{ m.content }}{% else %}{{ '<think>\n\n</think>\n\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<call>' + call.function.name + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


PROMPT_THINKS = CHATML.replace("assistant\n'", "assistant\n<think>\n'")


TRIMMED = ("headers", "model_role")


def mark_trained(rendered):
    """The text with its trained spans in «»."""
    text = rendered.text
    for start, end in reversed(rendered.trained_spans):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    return text


CHATS = {
    "single": ["Hi there", "Hello!"],
    "two_turns": ["Hi", "Hello", "Bye", "See you"],
    "content_repeats": ["a", "a", "a", "a", "a", "a"],
    "answer_in_question": ["Is 4 right? 4!", "4", "Say 4 4", "4 4"],
    "white_space": [" q\n", "  lead and trail \n", "again", "\n\nx\n"],
    "only_markers_in_content": ["q", "<|im_end|><|eot|></s><|end|><end_of_turn>", "r", "x<|im_end|>y"],
    "header_in_content": ["<|im_start|>assistant\n", "<|im_start|>user\nno<|im_end|>\n", "[/INST]", "[INST] </s>"],
    "unicode": ["é 👩‍👩‍👧", "ünï 日本語\u2028 👩‍👩‍👧e\u0301", "e", "\u00a0x\u200b"],
    "probe_in_content": ["Zqxj", "Zqxj Zqxj", "Zqxj", "Zqxj"],
    "ends_with_user": ["q", "r", "s"],
    "looks_like_jinja": ["{{ x }}", "{% raw %} {{ y }}", "{#", "#}"],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chat", CHATS)
def test_render_trains_answers_through_their_end_marker(data_with_template, family, chat):
    template, answer_form, end_of_text = FAMILIES[family]
    tokenizer = data_with_template(template)
    contents = CHATS[chat]
    rendered = ChatRenderer(tokenizer).render(conversation_with(*contents))
    answers = [answer.strip() if family in TRIMMED else answer for answer in contents[1::2]]
    expected = [answer_form.format("\0").replace("\0", answer) for answer in answers]
    if len(contents) % 2 == 0:
        expected[-1] += end_of_text
    assert trained_texts(rendered) == expected
    row = tokenize(tokenizer, rendered)
    assert decode_trained(tokenizer, row) == "".join(trained_texts(rendered))
    messages = [dict(message) for message in conversation_with(*contents).messages]
    assert row.input_ids.tolist() == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_render_begins_where_the_generation_prompt_ends(data_with_template, family):
    renderer = ChatRenderer(data_with_template(FAMILIES[family][0]))
    conversation = conversation_with("Hi", "Hello", "Bye", "See you")
    rendered = renderer.render(conversation)
    for (start, _), index in zip(rendered.trained_spans, (1, 3), strict=True):
        assert rendered.text[:start] == renderer.render_prompt(conversation.messages[:index])


def test_render_writes_the_complete_text_of_an_example(data_with_template):
    rendered = ChatRenderer(data_with_template(EOS_AT_THE_END)).render(conversation_with("Hi", "Hello", "Bye", "Later"))
    assert rendered == RenderedText(
        text="<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\nLater<|end|>\n</s>",
        trained_spans=((33, 45), (80, 97)),
    )


def test_render_trains_the_empty_thoughts_of_a_last_turn_only(data_with_template):
    renderer = ChatRenderer(data_with_template(STRIPS_THINKING))
    assert trained_texts(renderer.render(conversation_with("a", "a", "a", "a"))) == [
        "a<|im_end|>",
        "<think>\n\n</think>\n\na<|im_end|>",
    ]
    thinking = "<think>\nhm\n</think>\n\nb"
    assert trained_texts(renderer.render(conversation_with("a", thinking))) == [thinking + "<|im_end|>"]
    assert trained_texts(renderer.render(conversation_with("a", "<|im_end|>", "b", thinking))) == [
        "<|im_end|><|im_end|>",
        thinking + "<|im_end|>",
    ]


def test_render_finds_tool_calls_of_a_template_that_strips_thinking(data_with_template):
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    messages = (
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    )
    rendered = ChatRenderer(data_with_template(STRIPS_THINKING)).render(Conversation(messages=messages))
    assert trained_texts(rendered) == ["\n<call>look</call><|im_end|>", "<think>\n\n</think>\n\nIt is 5.<|im_end|>"]


LATE_SYSTEM = (  # writes the system text into the last question, as some templates do
    "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.last or loop.index == messages | length - 1 else '') }}"
    "{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


ENDS_LAST_ONLY = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% if loop.last and m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "conversation", "marked"),
    [
        (
            STRIPS_THINKING,
            conversation_with("a", "<think>\nx\n</think>\n\nb", "c", "d"),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nd<|im_end|>»\n",
        ),
        (
            LATE_SYSTEM,
            conversation_with("a", "b", "c", "d", system="S"),
            "<s>[INST] a [/INST]«b</s>»[INST] Sc [/INST]«d</s>»",
        ),
        (
            PROMPT_THINKS,
            conversation_with("a", "b", "c", "<think>\nhm\n</think>\nd"),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n"
            "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n«hm\n</think>\nd<|im_end|>»\n",
        ),
        (
            ENDS_LAST_ONLY,
            conversation_with("a", "b", "c", "d"),
            "user: a\nassistant: «b\n»user: c\nassistant: «d\n</s>»",
        ),
    ],
)
def test_render_trains_turns_of_templates_that_treat_the_last_turn_differently(
    data_with_template, template, conversation, marked
):
    rendered = ChatRenderer(data_with_template(template)).render(conversation)
    assert mark_trained(rendered) == marked


@pytest.mark.parametrize(
    ("template", "conversation", "reason", "message"),
    [
        (
            MODEL_ROLE,
            conversation_with("a", "b", system="S"),
            "template_refused",
            "the chat template raised an error: No system role",
        ),
        (
            CHATML,
            Conversation(messages=conversation_with("a", "b").messages[1:]),
            "no_prompt",
            "the conversation begins with an assistant message",
        ),
        (CHATML, conversation_with("a", "\ud800"), "not_unicode", "an unpaired surrogate"),
        (
            "{% for m in messages %}{{ 1 // (m.content | length - 1) }}{{ m.content }}{% endfor %}",
            conversation_with("x", "y"),
        )
        + ("template_refused", "division"),
    ],
)
def test_render_refuses_turns_that_it_cannot_locate(data_with_template, template, conversation, reason, message):
    renderer = ChatRenderer(data_with_template(template))
    with pytest.raises(RowRefused, match=message) as caught:
        renderer.render(conversation)
    assert caught.value.problem.reason == reason


def test_render_notes_a_longer_prompt_for_a_known_shape_too(data_with_template):
    renderer = ChatRenderer(data_with_template(PROMPT_THINKS))
    first, second = renderer.render(conversation_with("a", "b")), renderer.render(conversation_with("c", "d"))
    assert first.notes == second.notes == ("prompt_goes_further",)
    assert trained_texts(second) == ["d<|im_end|>"]
