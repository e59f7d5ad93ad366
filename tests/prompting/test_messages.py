"""Chat messages of all common forms to one form."""

import pickle

import pytest

from sft.prompting.formats import find_format
from sft.prompting.messages import RowRefused, openai_messages, sharegpt_messages
from tests.support import messages
from tests.support.prompts import A, U, convert

CALL = {"name": "f", "arguments": '{"x": 1}'}


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "no_answer"),
        ({"messages": None}, "missing_field"),
        ({"messages": 3}, "wrong_type"),
        ({"messages": "hello"}, "wrong_type"),
        ({"messages": DEEP}, "wrong_type"),
        ({"messages": "1" * 5000}, "wrong_type"),
        ({"messages": [U]}, "no_answer"),
        ({"messages": [U, "a"]}, "wrong_type"),
        ({"messages": [U, None]}, "wrong_type"),
        ({"messages": [U, {**A, "content": ""}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": " \n"}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": None}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": []}]}, "empty_answer"),
        ({"messages": [U, {**A, "content": 4}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": {"text": "x"}}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": [{"type": "image_url", "image_url": "x"}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "content": "\udc00"}]}, "not_unicode"),
        ({"messages": [{"role": "user"}, A]}, "missing_field"),
        ({"messages": [{**U, "role": "person"}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": ["user"]}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": None}, A]}, "unknown_role"),
        ({"messages": [{**U, "role": 10**4000}, A]}, "unknown_role"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": [{"function": {}}]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": ["f"]}]}, "wrong_type"),
        ({"messages": [U, {**A, "tool_calls": 3}]}, "wrong_type"),
        ({"messages": [U, A], "tools": 3}, "wrong_type"),
        ({"messages": [U, A], "tools": "nonsense"}, "wrong_type"),
        ({"messages": [U, A], "tools": DEEP}, "wrong_type"),
        ({"messages": [U, A], "tools": ["x"]}, "wrong_type"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown_role"),
        ({"conversations": [{"value": "x"}]}, "unknown_role"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": ""}]}, "empty_answer"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}, "missing_field"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "x"}], "system": 3}, "wrong_type"),
        ({"question": "q", "answer": ""}, "empty_answer"),
        ({"question": "q", "answer": "\u2003\n"}, "empty_answer"),
        ({"question": "q", "answer": None}, "empty_answer"),
        ({"question": "q", "answer": 4}, "wrong_type"),
        ({"question": "q", "answer": True}, "wrong_type"),
        ({"question": "q", "answer": b"x"}, "wrong_type"),
        ({"question": {"nested": "q"}, "answer": "a"}, "wrong_type"),
        ({"question": " ", "answer": "a"}, "empty_prompt"),
        ({"question": None, "answer": "a"}, "empty_prompt"),
        ({"question": "q\ud83d", "answer": "a"}, "not_unicode"),
        ({"prompt": "p", "completion": [A]}, "wrong_type"),
        ({"prompt": [U], "completion": [U]}, "no_answer"),
        ({"prompt": [U, {**A, "train": True}, U], "completion": [A]}, "wrong_type"),
        ({"prompt": [U, {**A, "loss": 1}, U], "completion": [A]}, "wrong_type"),
        ({"instruction": "i", "input": 3, "output": "o"}, "wrong_type"),
        ({"context": "c", "question": "q", "answers": {"text": []}}, "unanswerable"),
        ({"context": "c", "question": "q", "answers": []}, "unanswerable"),
        ({"context": "c", "question": "q", "answers": '{"text": [], "answer_start": []}'}, "unanswerable"),
        ({"context": "c", "question": "q", "answers": None}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": {"text": None}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": {"text": [" "]}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": {}}, "empty_answer"),
        ({"context": "c", "question": "q", "answers": 3}, "wrong_type"),
        ({"context": "c", "question": "q", "answers": [[]]}, "wrong_type"),
        ({"text": ""}, "empty_text"),
        ({"text": "\n\t"}, "empty_text"),
        ({"text": None}, "empty_prompt"),
        ({"text": ["x"]}, "wrong_type"),
    ],
)
def test_formats_refuse_a_record_with_its_reason(record, reason):
    with pytest.raises(RowRefused) as caught:
        convert(record)
    assert caught.value.problem.reason == reason
    assert "\n" not in caught.value.problem.message
    assert len(caught.value.problem.message) < 200


def test_find_format_convert_names_a_missing_field():
    with pytest.raises(RowRefused, match=messages.NO_FIELD.format(name="answer", names="question, id")) as caught:
        find_format({"question", "answer"}).convert({"question": "q", "id": 1})
    assert caught.value.problem.reason == "missing_field"


def test_openai_messages_brings_tool_calls_to_one_form():
    messages = [
        {"role": "user", "content": "u", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": CALL}]},
        {"role": "function", "content": "5", "tool_call_id": "c1"},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}
    assert openai_messages(messages) == (
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
    )


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({**U, "train": True}, r"messages\[0\]: only assistant messages can be trained; this one has the role 'user'"),
        ({**U, "weight": 1}, r"messages\[0\]: only assistant messages can be trained; this one has the role 'user'"),
        ({**A, "train": 1}, r"messages\[0\]: train must be true or false, found 1"),
        ({**A, "train": "yes"}, r"messages\[0\]: train must be true or false, found 'yes'"),
        ({**U, "loss": True}, r"messages\[0\]: only assistant messages can be trained; this one has the role 'user'"),
        ({**A, "loss": "no"}, r"messages\[0\]: loss must be true or false, found 'no'"),
        ({**A, "loss": 0.5}, r"messages\[0\]: loss must be true or false, found 0.5"),
        ({**A, "loss": [False]}, r"messages\[0\]: loss must be true or false, found a list"),
        ({**U, "loss": {}}, r"messages\[0\]: loss must be true or false, found an object"),
    ],
)
def test_openai_messages_refuses_invalid_train_and_weight(turn, message):
    with pytest.raises(RowRefused, match=message) as caught:
        openai_messages([turn])
    assert caught.value.problem.reason == "wrong_type"


def test_sharegpt_messages_converts_function_calls_and_roles():
    messages = [
        {"from": "system", "value": "s"},
        {"role": "user", "content": "u"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "5"},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert sharegpt_messages(messages) == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"},
    )


def test_row_refused_can_be_pickled():
    refused = pickle.loads(pickle.dumps(RowRefused("wrong_type", "found a list")))
    assert (refused.problem.reason, refused.problem.message) == ("wrong_type", "found a list")
