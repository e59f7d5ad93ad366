"""Keys of messages: given to the template if it reads them, counted by name if nothing does."""

import pytest

from sft.data.digest import conversation_digest
from sft.prompting.messages import THOUGHTS, RowRefused
from sft.prompting.rendering import ChatRenderer
from tests.support import messages
from tests.support.prompts import CHATML, A, U, convert, trained_texts

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def template(turn=TURN, prompt=PROMPT):
    return f"{{%- for m in messages %}}{turn}{{% endfor %}}{prompt}"


CALLS = "{% for call in m.tool_calls or [] %}{{ '<call>' + call.function.name + call.get('id', '') }}{% endfor %}"
NAMES = "{{ '<|im_start|>' + m.role + (' ' + m.name if m.name else '') + '\n' + m.content + '<|im_end|>\n' }}"
PLAN = "{{ '<|im_start|>' + m['role'] + '\n' + m.get('plan', '') + m.content + '<|im_end|>\n' }}"
WHOLE = "{{ '<|im_start|>' + m.role + '\n' + (m | tojson(sort_keys=True)) + m.content + '<|im_end|>\n' }}"
TOOL_NAMES = "{{ '<|im_start|>' + m.role + (m.name if m.role == 'tool' else '') + '\n' + m.content + '<|im_end|>\n' }}"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "f"}


@pytest.mark.parametrize(
    ("turn", "messages", "unread"),
    [
        (TURN, [U, A], []),
        (TURN, [U, {**A, "train_detail": [{"begin_offset": 0, "train": False}]}], ["train_detail"]),
        (TURN, [{**U, "id": 0}, {**A, "reasoning_details": [], "ok": False, "empty": ""}])
        + (["empty", "id", "ok", "reasoning_details"],),
        (TURN, [{**U, "name": None, "refusal": None}, {**A, "tool_calls": None, "audio": None}], []),
        (TURN, [{**U, "name": "Ann"}, A], ["name"]),
        (NAMES, [{**U, "name": "Ann"}, A], []),
        (NAMES, [{**U, "name": "Ann"}, {**A, "names": ["x"]}], ["names"]),
        (PLAN, [U, {**A, "plan": "First. "}], []),
        (PLAN, [U, {**A, "plan": "First. ", "plans": 3}], ["plans"]),
        (PLAN, [{**U, "plan": ""}, A], ["plan"]),
        (WHOLE, [{**U, "anything": {"x": [1]}}, A], []),
        (TOOL_NAMES, [{**U, "name": "Ann"}, A], ["name"]),
        (TOOL_NAMES + CALLS, [U, CALLED, RESULT, A], ["tool_call_id"]),
        (TOOL_NAMES + CALLS, [{**U, "name": "Ann"}, CALLED, RESULT, A], ["name", "tool_call_id"]),
        (TURN + CALLS.replace(" + call.get('id', '')", ""), [U, CALLED, A], ["tool_calls[].id"]),
        (TURN + CALLS, [U, {**CALLED, "tool_calls": [{**CALL, "index": 0}]}, A], ["tool_calls[].index"]),
        (TURN + CALLS, [U, {**CALLED, "tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, A])
        + (["tool_calls[].parameters"],),
        (TURN + CALLS, [U, {**CALLED, "tool_calls": [{**CALL, "function": {"name": "f", "strict": True}}]}, A])
        + (["tool_calls[].function.strict"],),
        (TURN + CALLS, [U, {**CALLED, "function_call": {"name": "g", "arguments": "{}"}}, A], ["function_call"]),
        (TURN, [{**U, "content": [{"type": "text", "text": "x", "cache_control": {}, "image": None}]}, A])
        + (["content[].cache_control"],),
        (TURN, [U, {**A, "reasoning": "So."}], ["reasoning"]),
    ],
)
def test_keys_that_nothing_reads_are_named(data_with_template, turn, messages, unread):
    tokenizer = data_with_template(template(turn))
    rendered = ChatRenderer(tokenizer).render(convert({"messages": messages}))
    assert sorted(rendered.unread_keys) == unread
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    if not any("content[]" in key or "tool_calls" in message for key in unread for message in messages):
        text = tokenizer.apply_chat_template([{"content": "", **message} for message in given], tokenize=False)
        assert rendered.text == text


@pytest.mark.parametrize(
    ("message", "unread"),
    [
        ({"from": "gpt", "value": "Four", "markdown": None}, []),
        ({"from": "gpt", "value": "Four", "markdown": {"type": "answer"}}, ["markdown"]),
        ({"from": "gpt", "value": "Four", "name": "bot", "rating": 0}, ["name", "rating"]),
        ({"from": "gpt", "value": "Four", "role": "assistant", "content": "Four"}, []),
        ({"from": "gpt", "value": "Four", "role": "user", "content": "Five"}, ["content", "role"]),
        ({"from": None, "role": "assistant", "content": "Four", "x": 1}, ["x"]),
    ],
)
def test_keys_of_sharegpt_messages_are_named_too(data_with_template, message, unread):
    conversation = convert({"conversations": [{"from": "human", "value": "What?"}, message]})
    rendered = ChatRenderer(data_with_template(CHATML)).render(conversation)
    assert (sorted(rendered.unread_keys), trained_texts(rendered)) == (unread, ["Four<|im_end|>"])


def test_keys_without_effect_do_not_hide_each_other(data_with_template):
    """Each of two keys has no effect beside the other; without both, the text would change."""
    turn = "{{ '<|im_start|>' + m.role + '\n' + (m.a or m.b or '') + m.content + '<|im_end|>\n' }}"
    rendered = ChatRenderer(data_with_template(template(turn))).render(
        convert({"messages": [U, {**A, "a": "x", "b": "x"}]})
    )
    assert len(rendered.unread_keys) == 1


def test_keys_without_effect_cost_no_rendering_where_the_template_does_not_name_them(data_with_template, monkeypatch):
    renderer = ChatRenderer(data_with_template(CHATML))
    rows = [convert({"messages": [{**U, "id": i}, {**A, "content": f"{i}", "score": 0.5}]}) for i in range(20)]
    renderer.render_all(rows[:1])
    applied = []
    apply = renderer._template.apply
    monkeypatch.setattr(
        renderer._template, "apply", lambda *args, **options: applied.append(1) or apply(*args, **options)
    )
    assert all(rendered.unread_keys == ("id", "score") for rendered in renderer.render_all(rows))
    assert applied == []


THOUGHT_TURNS = {
    name: "{%- if m.role == 'assistant' %}{{ '<|im_start|>assistant\n<think>' + (m."
    + name
    + " | default('')) + '</think>'"
    " + m.content + '<|im_end|>\n' }}{%- else %}" + TURN + "{%- endif %}"
    for name in (*THOUGHTS, "get('reasoning') or m.reasoning_content")
}


@pytest.mark.parametrize("key", THOUGHTS)
@pytest.mark.parametrize("read", THOUGHT_TURNS)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_thoughts_are_given_under_every_name(data_with_template, key, read, form):
    messages = {
        "messages": [U, {**A, key: "Two and two."}],
        "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": A["content"], key: "Two and two."}],
    }[form]
    renderer = ChatRenderer(data_with_template(template(THOUGHT_TURNS[read])))
    rendered = renderer.render(convert({form: messages}))
    assert trained_texts(rendered) == [f"<think>Two and two.</think>{A['content']}<|im_end|>"]
    assert (rendered.unread_keys, rendered.notes) == ((), ())
    later = renderer.render_prompt([U, {**A, key: "Two and two."}, U])
    assert "<think>Two and two.</think>" in later


@pytest.mark.parametrize(
    ("thoughts", "is_refused"),
    [
        ({"reasoning": "a", "thinking": "b"}, True),
        ({"reasoning": "a", "reasoning_content": "b"}, True),
        ({"reasoning": "a", "thinking": "a", "reasoning_content": "b"}, True),
        ({"reasoning": "a", "thinking": " a\n"}, False),
        ({"reasoning": "a", "reasoning_content": ""}, False),
        ({"reasoning": " ", "thinking": "a", "reasoning_content": None}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_thoughts_with_two_texts_are_refused(data_with_template, thoughts, is_refused, form):
    turns = {"messages": [U, {**A, **thoughts}]}
    turns["conversations"] = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", **thoughts}]
    if is_refused:
        with pytest.raises(RowRefused, match=messages.TEXTS_DIFFER) as caught:
            convert({form: turns[form]})
        assert caught.value.problem.reason == "two_thoughts"
        return
    rendered = ChatRenderer(data_with_template(template(THOUGHT_TURNS["reasoning"]))).render(
        convert({form: turns[form]})
    )
    assert "<think>a</think>" in "".join(rendered.text.split())


@pytest.mark.parametrize("key", THOUGHTS)
@pytest.mark.parametrize("value", [3, {"effort": "low"}, ["a"], True])
def test_thoughts_that_are_not_text_are_refused(key, value):
    with pytest.raises(RowRefused, match=rf"messages\[1\]: {messages.MUST_BE_TEXT.format(key=key)}"):
        convert({"messages": [U, {**A, key: value}]})


def test_keys_that_nothing_reads_do_not_hide_duplicates():
    plain, marked = convert({"messages": [U, A]}), convert({"messages": [{**U, "id": 1}, {**A, "rating": 5}]})
    assert conversation_digest(plain) == conversation_digest(marked)
