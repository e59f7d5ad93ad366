"""Record formats: their columns, and their records as conversations."""

import json

import pytest

from sft.prompting.formats import FORMATS, find_format
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.templates import resolve_chat_template
from tests.support.prompts import A, U, convert, decode_trained, tokenize, trained_texts

PLAIN_EXPECTED = "User:\nWhat?\n\nAssistant:\nFour</s>\n\n"


@pytest.mark.parametrize(
    ("name", "record", "text", "trained"),
    [
        ("messages", {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Four"}]})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "at?"}]},
                    {"role": "assistant", "content": ["Fo", {"text": "ur"}]},
                ]
            },
            PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("messages", {"messages": '[{"role":"user","content":"What?"},{"role":"assistant","content":"Four"}]'})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        ("conversations", {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Four"}]})
        + (PLAIN_EXPECTED, ["Four</s>"]),
        (
            "conversations",
            {"system": "Be.", "conversations": [{"from": "User", "value": "What?"}, {"from": "GPT", "value": "Four"}]},
            "Be.\n\n" + PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("alpaca", {"instruction": "What?", "input": "", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("alpaca", {"instruction": "What?", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("alpaca", {"instruction": "Wh", "input": "at?", "output": "Four"})
        + ("User:\nWh\n\nat?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("prompt_completion", {"prompt": "What?", "completion": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        (
            "prompt_completion",
            {
                "prompt": [{"role": "user", "content": "What?"}],
                "completion": [{"role": "assistant", "content": "Four"}],
            },
            PLAIN_EXPECTED,
            ["Four</s>"],
        ),
        ("question_answer", {"question": "What?", "answer": "Four", "id": 7}, PLAIN_EXPECTED, ["Four</s>"]),
        ("input_output", {"input": "What?", "output": "Four"}, PLAIN_EXPECTED, ["Four</s>"]),
        ("squad", {"context": "C.", "question": "Q?", "answers": {"text": ["Four", "4"], "answer_start": [0, 1]}})
        + ("User:\nC.\n\nQ?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("squad", {"context": "C.", "question": "Q?", "answers": [{"text": "Four"}]})
        + ("User:\nC.\n\nQ?\n\nAssistant:\nFour</s>\n\n", ["Four</s>"]),
        ("text", {"text": " What? "}, " What? ", [" What? "]),
    ],
)
def test_formats_give_the_expected_text_and_trained_characters(data_with_template, name, record, text, trained):
    tokenizer = data_with_template(resolve_chat_template("plain", begins_with_bos=False))
    assert find_format(record).name == name
    conversation = convert(record)
    is_chat = name != "text"
    rendered = ChatRenderer(tokenizer).render(conversation) if is_chat else render_text(conversation)
    assert rendered.text == text
    assert trained_texts(rendered) == trained
    row = tokenize(tokenizer, rendered, is_chat=is_chat)
    assert decode_trained(tokenizer, row) == "".join(trained) + ("" if is_chat else "</s>")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"messages", "text", "prompt"}, "messages"),
        ({"question", "answers", "context", "title"}, "squad"),
        ({"instruction", "input", "output"}, "alpaca"),
        ({"question", "answer", "text"}, "question_answer"),
        ({"question", "answers"}, None),
        ({"Text"}, None),
        (set(), None),
    ],
)
def test_find_format_is_chosen_by_columns(columns, expected):
    found = find_format(columns)
    assert (found and found.name) == expected


def test_formats_read_only_columns_that_they_name():
    for known in FORMATS:
        seen = set()

        class Recorder(dict):
            def get(self, key, default=None, seen=seen):
                seen.add(key)
                return super().get(key, default)

        turns = [{"role": "user", "content": "x", "from": "human", "value": "x"}]
        turns += [{"role": "assistant", "content": "x", "from": "gpt", "value": "x"}]
        lists = {**dict.fromkeys(("messages", "conversations"), turns), "input_ids": [1]}
        known.convert(Recorder({name: lists.get(name, "x") for name in known.columns}))
        assert known.columns <= seen <= known.columns | known.optional, known.name


@pytest.mark.parametrize(
    ("wishes", "untrained"),
    [
        ([{}, {}], set()),
        ([{"train": False}, {"train": True}], {1}),
        ([{"weight": 0}, {"weight": 1}], {1}),
        ([{"weight": 0.0}, {"weight": None}], {1}),
        ([{"train": True, "weight": 0}, {"train": False, "weight": 0}], {1, 3}),
        ([{}, {"train": False, "content": ""}], {3}),
        ([{"loss": False}, {"loss": True}], {1}),
        ([{"loss": 0}, {"loss": 1}], {1}),
        ([{"loss": 0.0}, {"loss": 1.0}], {1}),
        ([{"loss": None}, {"loss": False, "train": True}], {3}),
        ([{"loss": True, "weight": 0}, {"loss": True, "train": False}], {1, 3}),
    ],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_formats_exclude_turns_that_the_messages_mark(name, wishes, untrained):
    turns = [{"role": "user", "content": "u", "train": False}, A, {"role": "user", "content": "v", "weight": 0}, A]
    turns[1], turns[3] = {**A, **wishes[0]}, {**A, **wishes[1]}
    conversation = convert({name: turns})
    assert conversation.untrained == untrained
    assert all(set(message) == {"role", "content"} for message in conversation.messages)


def test_formats_train_the_completion_alone_of_prompts_with_answers():
    conversation = convert({"prompt": [U, A, U], "completion": [A, U, A]})
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3
    assert conversation.untrained == {1}


S = {"role": "system", "content": "Be brief."}
LISTS = {
    "messages": lambda messages: {"messages": messages},
    "conversations": lambda messages: {"conversations": [{"from": m["role"], "value": m["content"]} for m in messages]},
    "prompt": lambda messages: {"prompt": messages[:-1], "completion": messages[-1:]},
    "prompt as text": lambda messages: {"prompt": json.dumps(messages[:-1]), "completion": messages[-1:]},
}


@pytest.mark.parametrize("record_of", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize(
    ("column", "own", "expected"),
    [
        ("Be brief.", [], "Be brief."),
        ("Be brief.", [S], "Be brief."),
        (" Be brief.\n", [S], "Be brief."),
        ([{"type": "text", "text": "Be "}, {"text": "brief."}], [], "Be brief."),
        (None, [S], "Be brief."),
        (" ", [S], "Be brief."),
        ("", [], None),
        (None, [], None),
        ("Be long.", [S], "two_system_prompts"),
        ([{"text": "Be long."}], [S], "two_system_prompts"),
        (3, [], "wrong_type"),
        ({"text": "x"}, [], "wrong_type"),
        ([{"type": "image_url"}], [], "wrong_type"),
        ("\ud83d", [], "not_unicode"),
    ],
)
def test_formats_take_the_system_turn_from_its_column(record_of, column, own, expected):
    record = {**record_of([*own, U, A]), "system": column}
    if expected in ("two_system_prompts", "wrong_type", "not_unicode"):
        with pytest.raises(RowRefused) as caught:
            convert(record)
        assert caught.value.problem.reason == expected
        assert "'system'" in caught.value.problem.message
        return
    systems = [message["content"] for message in convert(record).messages if message["role"] == "system"]
    assert systems == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "record",
    [
        {"question": "q", "answer": "a"},
        {"input": "q", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"context": "c", "question": "q", "answers": {"text": ["a"]}},
        {"messages": [U, A]},
        {"conversations": [U, A]},
    ],
    ids=lambda record: find_format(record).name,
)
def test_every_chat_format_reads_the_column_system(record):
    assert "system" in find_format(record).optional
    assert convert({**record, "system": "Be brief."}).messages[0] == S


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_formats_keep_tool_calls_beside_a_text(key):
    call = {"type": "function", "function": {"name": "look", "arguments": {"x": 1}}}
    said = {"messages": ("role", "user", "assistant", "content"), "conversations": ("from", "human", "gpt", "value")}
    who, asks, answers, what = said[key]
    turns = [{who: asks, what: "w?"}, {who: answers, what: "I look.", "tool_calls": [call]}]
    silent = [turns[0], {who: answers, what: "", "tool_calls": [call]}]
    old = [turns[0], {who: answers, what: "", "function_call": {"name": "look", "arguments": '{"x": 1}'}}]
    for record in ({key: turns}, {key: silent}, *([{key: old}] if key == "messages" else [])):
        assert convert(record).messages[1]["tool_calls"] == [call]
