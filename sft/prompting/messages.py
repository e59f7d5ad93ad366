"""Chat messages of any common spelling to one form: `role`, `content` as text, and what tools add."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sft.common.data_records import Conversation, RowProblem

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
    "function_call": "function_call",
}
_TRAINED_OR_NOT: dict[str, dict[Any, bool]] = {"train": {True: True, False: False}, "weight": {1: True, 0: False}}
"""Keys with which a message says whether it is trained, and what they may hold."""
_KEPT_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking")


class RowRefused(Exception):
    """A row cannot be used; `problem` says why."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.problem = RowProblem(reason=reason, message=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it travels from a worker process: exceptions are made anew from their message alone."""
        return type(self), (self.problem.reason, self.problem.message)


def text_field(record: Mapping[str, Any], name: str, *, answer: bool = False, required: bool = True) -> str:
    """A field that must be text.

    Raises:
        RowRefused: `missing_field`, `wrong_type`, `empty_answer`, `empty_prompt` or `not_unicode`.
    """
    value = record.get(name)
    if value is None:
        if not required:
            return ""
        if name in record:
            raise RowRefused("empty_answer" if answer else "empty_prompt", f"{name!r} is null")
        raise RowRefused("missing_field", f"no field {name!r}; there: {_listed(record)}")
    if not isinstance(value, str):
        raise RowRefused("wrong_type", f"{name!r} must be text, found {kind_of(value)}")
    if required and not value.strip():
        raise RowRefused("empty_answer" if answer else "empty_prompt", f"{name!r} is empty")
    return checked_text(value, name)


def checked_text(value: str, name: str) -> str:
    """The text, if it can be written as UTF-8: JSON can smuggle in halves of characters that no tokenizer takes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowRefused("not_unicode", f"{name!r} holds half a surrogate pair, which is no character") from None
    if "\0" in value:
        raise RowRefused("nul_character", f"{name!r} holds a NUL character: a binary file, or broken text")
    return value


def kind_of(value: Any) -> str:
    """A JSON type as a person would name it."""
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    return {list: "a list", dict: "an object", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


def openai_messages(value: Any, name: str = "messages") -> tuple[Mapping[str, Any], ...]:
    """`[{"role": ..., "content": ...}]`, content as text or as a list of text parts.

    Raises:
        RowRefused: with the message's number and what is wrong with it.
    """
    return tuple(_openai_message(item, f"{name}[{number}]") for number, item in enumerate(_list_of(value, name)))


def sharegpt_messages(value: Any, name: str = "conversations") -> tuple[Mapping[str, Any], ...]:
    """`[{"from": "human" | "gpt" | ..., "value": ...}]` (role/content keys are understood as well).

    Raises:
        RowRefused: with the message's number and what is wrong with it.
    """
    items = _list_of(value, name)
    return tuple(_sharegpt_message(item, f"{name}[{number}]") for number, item in enumerate(items))


def conversation_of(
    messages: Sequence[Mapping[str, Any]], name: str, tools: tuple[Any, ...] | None = None
) -> Conversation:
    """The conversation that checked messages make, if it has an answer to train on.

    Raises:
        RowRefused: `no_answer` or `empty_answer`.
    """
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise RowRefused("no_answer", f"{name} has no turn of the assistant: nothing to train on")
    for turn in turns:
        if not turn["content"].strip() and not turn.get("tool_calls") and turn.get("train", True):
            raise RowRefused("empty_answer", f"{name} has an empty turn of the assistant")
    untrained = frozenset(i for i, message in enumerate(messages) if not message.get("train", True))
    if untrained:
        messages = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    return Conversation(messages=tuple(messages), tools=tools, untrained=untrained)


def _is_left_out(item: Mapping[str, Any], role: str, place: str) -> bool:
    """Whether a message says by `train` or `weight` that it is not to be trained."""
    wishes = [_wish(item, key, allowed, place) for key, allowed in _TRAINED_OR_NOT.items()]
    if True in wishes and role != "assistant":
        raise RowRefused("wrong_type", f"{place}: only turns of the assistant can be trained, and this is of {role!r}")
    return False in wishes and role == "assistant"


def _wish(item: Mapping[str, Any], key: str, allowed: Mapping[Any, bool], place: str) -> bool | None:
    """Whether a message is to be trained, by one of its keys; None if that does not say."""
    value = item.get(key)
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or isinstance(value, bool) != (key == "train") or value not in allowed:
        choices = " or ".join(str(choice).lower() for choice in allowed)
        raise RowRefused("wrong_type", f"{place}: {key} must be {choices}, found {_shown(value)}")
    return allowed[value]


def _list_of(value: Any, name: str, what: str = "messages") -> list[Any]:
    if value is None:
        raise RowRefused("missing_field", f"{name!r} is missing")
    if isinstance(value, str):
        try:  # CSV and some exports keep the list as JSON text
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowRefused("wrong_type", f"{name!r} must be a list of {what}, found text") from None
    if not isinstance(value, list | tuple):
        raise RowRefused("wrong_type", f"{name!r} must be a list of {what}, found {kind_of(value)}")
    if not value:
        raise RowRefused("no_answer", f"{name!r} is an empty list")
    return list(value)


def _openai_message(item: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{place} must be an object with role and content, found {kind_of(item)}")
    role = item.get("role")
    if role == "function":
        role = "tool"
    if role not in ROLES:
        raise RowRefused("unknown_role", f"{place}: role {_shown(role)} is unknown; allowed: {', '.join(ROLES)}")
    tool_calls = item.get("tool_calls")
    if not tool_calls and item.get("function_call") is not None:
        tool_calls = [item["function_call"]]  # how the OpenAI API wrote a single call at first
    message: dict[str, Any] = {"role": role, "content": _content_text(item, place, may_be_null=bool(tool_calls))}
    for key in _KEPT_KEYS:
        if item.get(key) is not None:
            if not isinstance(item[key], str):
                raise RowRefused("wrong_type", f"{place}: {key} must be text, found {kind_of(item[key])}")
            message[key] = checked_text(item[key], f"{place}.{key}")
    if tool_calls:
        calls = _list_of(tool_calls, f"{place}.tool_calls", "calls")
        message["tool_calls"] = [_tool_call(call, f"{place}.tool_calls") for call in calls]
    if ("train" in item or "weight" in item) and _is_left_out(item, role, place):
        message["train"] = False
    return message


def _sharegpt_message(item: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{place} must be an object with from and value, found {kind_of(item)}")
    if "from" not in item and "role" in item:
        return _openai_message(item, place)
    role = _SHAREGPT_ROLES.get(str(item.get("from")).lower())
    if role is None:
        allowed = ", ".join(_SHAREGPT_ROLES)
        raise RowRefused("unknown_role", f"{place}: from {_shown(item.get('from'))} is unknown; allowed: {allowed}")
    if role == "assistant" and item.get("tool_calls"):
        return _openai_message({**item, "role": role, "content": item.get("value")}, place)
    content = _content_text({"content": item.get("value")}, place, may_be_null=False)
    own_role = "assistant" if role == "function_call" else role
    left_out = {"train": False} if _is_left_out(item, own_role, place) else {}
    if role != "function_call":
        return {"role": role, "content": content, **left_out}
    try:
        call = json.loads(content)
    except (ValueError, RecursionError):
        raise RowRefused("wrong_type", f"{place}: a function_call's value must be JSON") from None
    calls = call if isinstance(call, list) else [call]
    return {"role": "assistant", "content": "", "tool_calls": [_tool_call(call, place) for call in calls], **left_out}


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    """One tool call in the form that templates expect: arguments as an object, not as JSON text."""
    if not isinstance(call, Mapping):
        raise RowRefused("wrong_type", f"{place} must hold objects, found {kind_of(call)}")
    function = dict(call["function"]) if isinstance(call.get("function"), Mapping) else dict(call)
    if not isinstance(function.get("name"), str):
        raise RowRefused("wrong_type", f"{place}: a call without the function's name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise RowRefused("wrong_type", f"{place}: arguments of {function['name']} are not JSON") from None
    result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = call["id"]
    return result


def _content_text(item: Mapping[str, Any], place: str, *, may_be_null: bool) -> str:
    content = item.get("content")
    if content is None:
        if may_be_null:
            return ""
        reason = "empty_answer" if item.get("role") == "assistant" else "missing_field"
        raise RowRefused(reason, f"{place} has no content")
    if isinstance(content, str):
        return checked_text(content, place)
    if not isinstance(content, list | tuple):
        raise RowRefused("wrong_type", f"{place}: content must be text or a list of parts, found {kind_of(content)}")
    return checked_text("".join(_part_text(part, place) for part in content), place)


def _part_text(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return part["text"]
    kind = part.get("type", "unknown") if isinstance(part, Mapping) else kind_of(part)
    raise RowRefused("wrong_type", f"{place}: content part of type {_shown(kind)}; only text parts can be trained on")


def _shown(value: Any) -> str:
    """A value in an error message: on one line, of bearable length."""
    text = repr(value) if isinstance(value, str | int | float | None) else kind_of(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(record: Mapping[str, Any]) -> str:
    names = [" ".join(str(name).split())[:40] for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
