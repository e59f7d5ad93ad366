"""What is trained of a conversation, by chat templates that each have one habit."""

import pytest

from sft.common.data_records import Conversation
from sft.data.rows import NOTE_FLAGS
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer
from sft.prompting.turns import NOTES
from tests.support import messages
from tests.support.chat_templates import (
    ASKS,
    END,
    LOOP,
    TOOL_TURNS,
    TURNS,
    TWO,
    WHOLE,
    _call,
    _calling,
    chat_of,
    mark_spans,
)


@pytest.mark.parametrize("habit", TURNS)
def test_render_trains_only_answers_and_their_ends(tokenizer_with, habit):
    assert mark_spans(ChatRenderer(tokenizer_with(TURNS[habit])).render(chat_of(*TWO))) == WHOLE[habit]


HOSTILE = {
    "repeats": ["a", "a", "a", "a"],
    "role_names": ["assistant", "user", "assistant", "system"],
    "single_characters": ["<", ">", "[", "]"],
    "end_in_content": ["<|end|>", "<|end|>", "q<|end|>", "b<|end|>\n[~]"],
    "turn_in_content": [
        "x<|end|><|assistant|>y",
        "<|end|><|user|>no<|end|><|assistant|>",
        "<|start|>",
        "[~[assistant\n",
    ],
    "private_use": ["\ue000\ue001", "a\ue000", "\ue002\uf8ff", "\U000f0000\U0010fffd"],
    "control": ["\x80\x81", "a\x80", "\x82\x9f", "\uf800"],
    "unicode": ["e\u0301\u200d", "\u202eא\u2028\u00e9 👩‍👩‍👧", "\ufeff", "\u0301"],
    "thoughts_in_question": ["<think>x</think>", "a", "</think>", "b"],
}


@pytest.mark.parametrize("chat", HOSTILE)
@pytest.mark.parametrize("habit", [habit for habit in TURNS if habit not in ("history_without_thoughts", "words_only")])
def test_render_trains_the_same_around_any_content(tokenizer_with, habit, chat):
    """The expected text: rendered with harmless contents, which are then replaced."""
    renderer = ChatRenderer(tokenizer_with(TURNS[habit]))
    expected = WHOLE[habit].replace("Hi", "\1").replace("Yes", "\2").replace("Bye", "\3").replace("No", "\4")
    contents = [text.strip() if habit == "trims_answers" else text for text in HOSTILE[chat]]
    for placeholder, content in zip("\1\2\3\4", contents, strict=True):
        expected = expected.replace(placeholder, content)
    assert mark_spans(renderer.render(chat_of(*HOSTILE[chat]))) == expected


@pytest.mark.parametrize(
    ("habit", "conversation", "marked"),
    [
        ("plain", chat_of("q", " a \n", roles="ua"), "<|user|>q<|end|><|assistant|>« a \n<|end|>»"),
        ("trims_answers", chat_of(" q", " a \n"), "<|user|> q<|end|>\n<|assistant|>«a<|end|>»\n"),
        ("plain", chat_of("q", "a", "r"), "<|user|>q<|end|><|assistant|>«a<|end|>»<|user|>r<|end|>"),
        ("plain", chat_of("", "a", " "), "<|user|><|end|><|assistant|>«a<|end|>»<|user|> <|end|>"),
        (
            "plain",
            chat_of("s", "q", "a", "t", "r", "b", roles="suasua"),
            "<|system|>s<|end|><|user|>q<|end|><|assistant|>«a<|end|>»<|system|>t<|end|><|user|>r<|end|>"
            "<|assistant|>«b<|end|>»",
        ),
        (
            "plain",
            chat_of("q", "a", "b", roles="uaa"),
            "<|user|>q<|end|><|assistant|>«a<|end|>»<|assistant|>«b<|end|>»",
        ),
        ("merges", chat_of("q", "a", " b", roles="uaa"), "<|user|>q<|end|><|assistant|>«a»« b<|end|>»"),
        (
            "goes_on",
            chat_of("q", "a", "b", roles="uaa"),
            "<|user|>q<|end|><|assistant|>«a<|end|>»<|assistant|>«b<|end|>»",
        ),
        (
            "looks",
            chat_of("<result>5</result>", "a", "<result>", "b"),
            "<|tool|><result>5</result><|end|><|assistant|>«a<|end|>»<|tool|><result><|end|><|assistant|>«b<|end|>»",
        ),
        (
            "compares",
            chat_of("x", "a", "y", "b"),
            "<|user|>nothing<|end|><|assistant|>«a<|end|>»<|user|>y<|end|><|assistant|>«b<|end|>»",
        ),
        (
            "prompt_thinks",
            chat_of("q", "<think>\nhm</think>a", "r", "<think>hm</think>b"),
            "<|user|>q<|end|><|assistant|><think>\n«hm</think>a<|end|>»<|user|>r<|end|>"
            "<|assistant|>«<think>hm</think>b<|end|>»",
        ),
        (
            "history_without_thoughts",
            chat_of("q", "<think>a"),
            "<|user|>q<|end|><|assistant|>«<think></think><think>a<|end|>»",
        ),
    ],
)
def test_render_trains_turns_of_other_shapes(tokenizer_with, habit, conversation, marked):
    assert mark_spans(ChatRenderer(tokenizer_with(TURNS[habit])).render(conversation)) == marked


def test_render_finds_every_turn_of_a_long_conversation(tokenizer_with):
    conversation = chat_of(*(str(number % 7) for number in range(100)))
    rendered = ChatRenderer(tokenizer_with(TURNS["plain"])).render(conversation)
    answers = [rendered.text[start:end] for start, end in rendered.trained_spans]
    assert answers == [f"{number % 7}<|end|>" for number in range(1, 100, 2)]


def test_render_notes_omitted_thoughts(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["history_without_thoughts"]))
    thinks = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    messages = ({"role": "user", "content": "q"}, thinks)
    whole = renderer.render(Conversation(messages=messages))
    assert (mark_spans(whole), whole.notes) == ("<|user|>q<|end|><|assistant|>«<think>hm</think>a<|end|>»", ())
    history = renderer.render(Conversation(messages=messages * 2))
    assert mark_spans(history) == (
        "<|user|>q<|end|><|assistant|>«a<|end|>»<|user|>q<|end|><|assistant|>«<think>hm</think>a<|end|>»"
    )
    assert history.notes == ()
    gone = renderer.render(chat_of("q", "<think>ho</think>a", "r", "b"))
    assert gone.notes == ("thoughts_left_out",)
    assert set(NOTES) == set(NOTE_FLAGS)


@pytest.mark.parametrize(
    ("reason", "template", "conversation", "message"),
    [
        (
            "tool_calls_left_out",
            TOOL_TURNS["drops_calls"],
            _calling(_call("I look.")),
            "the chat template does not write its",
        ),
        (
            "tool_calls_left_out",
            TOOL_TURNS["drops_calls"],
            _calling(_call()),
            "the chat template does not write its tool calls",
        ),
        (
            "turn_not_found",
            TOOL_TURNS["moves_text"],
            _calling(_call("I look.")),
            "the chat template writes another message inside it",
        ),
        (
            "turn_not_found",
            LOOP + "{{ m.content[:4] }}|" + END,
            chat_of("q", "long text"),
            "the chat template omits its end",
        ),
        (
            "turn_not_found",
            LOOP + "{{ '\n' + m.role }}: {{ m.content }}" + END + ASKS + "What?{% endif %}",
            chat_of("q", "a"),
            r"the conversation does not continue with the prompt's 'What\?'",
        ),
        (
            "turn_not_found",
            LOOP + "{{ m.content }}{{ m.content | length }}" + END,
            chat_of("q", "ab"),
            "cannot be located in the output",
        ),
    ],
)
def test_render_refuses_a_turn_that_it_cannot_locate(tokenizer_with, reason, template, conversation, message):
    renderer = ChatRenderer(tokenizer_with(template))
    with pytest.raises(RowRefused, match=f"{messages.MESSAGE.format(number=2)}.*{message}") as caught:
        renderer.render(conversation)
    assert caught.value.problem.reason == reason


def test_render_trains_only_the_last_turn_on_request(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]), only_last_turn=True)
    text = "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>«b<|end|>»"
    assert mark_spans(renderer.render(chat_of("q", "a", "r", "b"))) == text
    assert mark_spans(renderer.render(chat_of("q", "a", "r", "b", "s"))) == text + "<|user|>s<|end|>"
    with pytest.raises(RowRefused) as caught:
        renderer.render(chat_of("q", "a", "r", "b", untrained=frozenset({3})))
    assert caught.value.problem.reason == "no_answer"


def test_render_does_not_train_turns_that_the_row_excludes(tokenizer_with):
    renderer = ChatRenderer(tokenizer_with(TURNS["plain"]))
    for _ in range(2):  # by marks, then by the shape
        rendered = renderer.render(chat_of("q", "a", "r", "b", untrained=frozenset({1})))
        assert mark_spans(rendered) == "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>«b<|end|>»"
    first = chat_of("a", "q", "b", roles="aua", untrained=frozenset({0}))
    assert mark_spans(renderer.render(first)) == "<|assistant|>a<|end|><|user|>q<|end|><|assistant|>«b<|end|>»"


def test_render_ignores_problems_of_an_untrained_turn(tokenizer_with):
    moves = tokenizer_with(TOOL_TURNS["moves_text"])
    conversation = _calling(_call("I look."))
    end = "<|tool|>5I look.<|end|><|assistant|>«ok<|end|>»"
    assert mark_spans(ChatRenderer(moves, only_last_turn=True).render(conversation)).endswith(end)
