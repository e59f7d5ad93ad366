"""Chat messages in all common forms, converted to one form: `role`, `content` as text, and tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.refusal import RowRefused, kind_of, shown, weight_of

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
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that hold its thoughts, separate from its content: names of different engines for the same."""
_TRAIN_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "train": ((bool,), "true or false"),
    "loss": ((bool, int, float), "true or false"),
}
"""Keys that set whether a message is trained -> the types of their values 1 and 0, and what is allowed."""
WEIGHT = "weight"
"""The key (of a message, or column) that says how much its tokens count in the loss."""
_KEPT_KEYS = ("tool_call_id", "name", *THOUGHTS)
_READ_KEYS = {"role", "content", "tool_calls", "function_call", *_KEPT_KEYS, *_TRAIN_KEYS, WEIGHT}
_OTHER, _UNREAD = "other keys", "unread keys"
"""Entries of a converted message, until the conversation is complete: as in `Conversation`."""


def text_field(record: Mapping[str, Any], name: str, *, answer: bool = False, required: bool = True) -> str:
    """A field that must be text.

    Args:
        record: The record.
        name: The field.
        answer: Whether the field is the answer, for the reason of a refusal.
        required: Whether the field must exist; otherwise a missing field is an empty text.

    Raises:
        RowRefused: `missing_field`, `wrong_type`, `empty_answer`, `empty_prompt` or `not_unicode`.
    """
    value = record.get(name)
    if value is None:
        if not required:
            return ""
        if name in record:
            raise RowRefused("empty_answer" if answer else "empty_prompt", f"{name!r} is null")
        raise RowRefused("missing_field", f"no field {name!r}; fields: {_listed(record)}")
    if not isinstance(value, str):
        raise RowRefused("wrong_type", f"{name!r} must be text, found {kind_of(value)}")
    if required and not value.strip():
        raise RowRefused("empty_answer" if answer else "empty_prompt", f"{name!r} is empty")
    return checked_text(value, name)


def checked_text(value: str, name: str) -> str:
    """The text, if it can be encoded as UTF-8: JSON may contain unpaired surrogates, which no tokenizer accepts."""
    try:
        _ = value.isascii() or value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowRefused("not_unicode", f"{name!r} contains an unpaired surrogate, which is not a character") from None
    if "\0" in value:
        raise RowRefused("nul_character", f"{name!r} contains a NUL character: a binary file or corrupt text")
    return value


def content_text(item: Mapping[str, Any], where: str, *, may_be_null: bool) -> str:
    """The content of a message, as text or as a list of text parts.

    Raises:
        RowRefused: If it is missing and may not be, or is not text.
    """
    content = item.get("content")
    if content is None:
        if may_be_null:
            return ""
        reason = "empty_answer" if item.get("role") == "assistant" else "missing_field"
        raise RowRefused(reason, f"{where} has no content")
    if isinstance(content, str):
        return checked_text(content, where)
    if not isinstance(content, list | tuple):
        raise RowRefused("wrong_type", f"{where}: content must be text or a list of parts, found {kind_of(content)}")
    return checked_text("".join(_part_text(part, where) for part in content), where)


def openai_messages(value: Any, name: str = "messages") -> tuple[Mapping[str, Any], ...]:
    """Convert `[{"role": ..., "content": ...}]`, with content as text or as a list of text parts.

    Raises:
        RowRefused: With the number of the message and what is wrong with it.
    """
    return tuple(_openai_message(item, f"{name}[{number}]") for number, item in enumerate(_list_of(value, name)))


def sharegpt_messages(value: Any, name: str = "conversations") -> tuple[Mapping[str, Any], ...]:
    """Convert `[{"from": "human" | "gpt" | ..., "value": ...}]` (role/content keys are accepted too).

    Raises:
        RowRefused: With the number of the message and what is wrong with it.
    """
    items = _list_of(value, name)
    return tuple(_sharegpt_message(item, f"{name}[{number}]") for number, item in enumerate(items))


def conversation_of(
    messages: Sequence[Mapping[str, Any]], name: str, tools: tuple[Any, ...] | None = None
) -> Conversation:
    """The conversation of converted messages, if it has an answer to train on.

    Raises:
        RowRefused: `no_answer` or `empty_answer`.
    """
    turns = [message for message in messages if message["role"] == "assistant"]
    if not turns:
        raise RowRefused("no_answer", f"{name} has no assistant message: nothing to train on")
    for turn in turns:
        if not turn["content"].strip() and not turn.get("tool_calls") and turn.get("train", True):
            raise RowRefused("empty_answer", f"{name} has an empty assistant message")
    if all(len(message) == 2 for message in messages):
        return Conversation(messages=tuple(messages), tools=tools)
    own = ("train", WEIGHT, _OTHER, _UNREAD)
    return Conversation(
        messages=tuple({key: value for key, value in message.items() if key not in own} for message in messages),
        tools=tools,
        untrained=frozenset(i for i, message in enumerate(messages) if not message.get("train", True)),
        message_weights={i: message[WEIGHT] for i, message in enumerate(messages) if WEIGHT in message},
        other_keys={i: message[_OTHER] for i, message in enumerate(messages) if _OTHER in message},
        unread_keys=tuple(dict.fromkeys(key for message in messages for key in message.get(_UNREAD, ()))),
    )


def _says_trained(item: Mapping[str, Any], role: str, weight: float, where: str) -> bool | None:
    """Whether a message is trained according to `train`, `loss` and its weight; None if they do not say."""
    settings = [_train_setting(item, key, where) for key in _TRAIN_KEYS]
    settings.append(None if item.get(WEIGHT) is None else weight > 0)
    if True in settings and role != "assistant":
        raise RowRefused(
            "wrong_type", f"{where}: only assistant messages can be trained; this one has the role {role!r}"
        )
    if role != "assistant":
        return None
    return False if False in settings else True if True in settings else None


def _train_setting(item: Mapping[str, Any], key: str, where: str) -> bool | None:
    """Whether a message is trained according to one of its keys; None if the key is missing."""
    value = item.get(key)
    if value is None:
        return None
    types, choices = _TRAIN_KEYS[key]
    if type(value) not in types or value not in (0, 1):
        raise RowRefused("wrong_type", f"{where}: {key} must be {choices}, found {shown(value)}")
    return bool(value)


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


def _openai_message(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{where} must be an object with role and content, found {kind_of(item)}")
    role = item.get("role")
    if role == "function":
        role = "tool"
    if role not in ROLES:
        raise RowRefused("unknown_role", f"{where}: role {shown(role)} is unknown; allowed: {', '.join(ROLES)}")
    tool_calls = item.get("tool_calls")
    if not tool_calls and item.get("function_call") is not None:
        tool_calls = [item["function_call"]]  # the first form of a call in the OpenAI API
    message: dict[str, Any] = {"role": role, "content": content_text(item, where, may_be_null=bool(tool_calls))}
    for key in _KEPT_KEYS:
        if item.get(key) is not None:
            if not isinstance(item[key], str):
                raise RowRefused("wrong_type", f"{where}: {key} must be text, found {kind_of(item[key])}")
            message[key] = checked_text(item[key], f"{where}.{key}")
    if tool_calls:
        tool_calls = _list_of(tool_calls, f"{where}.tool_calls", "calls")
        message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls") for call in tool_calls]
    if len(item) > 2:
        _check_thoughts(message, where)
        weight = weight_of(item.get(WEIGHT), f"{where}: weight")
        trained = _says_trained(item, role, weight, where)
        if trained is not None:
            message["train"] = trained
            if weight != 1 or not trained:
                message[WEIGHT] = weight if trained else 0.0
        others = {key: value for key, value in item.items() if key not in _READ_KEYS and value is not None}
        if item.get("tool_calls") and item.get("function_call") is not None:
            others["function_call"] = item["function_call"]
        if others:
            message[_OTHER] = others
    if not isinstance(item.get("content"), str) or tool_calls:
        unread = [*_unread_in_parts(item.get("content")), *_unread_in_calls(tool_calls or ())]
        if unread:
            message[_UNREAD] = unread
    return message


def _check_thoughts(message: Mapping[str, Any], where: str) -> None:
    """Refuse thoughts that differ under two names."""
    given = [key for key in THOUGHTS if message.get(key, "").strip()]
    if len({message[key].strip() for key in given}) > 1:
        names = " and ".join(given)
        raise RowRefused("two_thoughts", f"{where}: {names} name the same thing, and their texts differ; keep one")


def _unread_in_parts(content: Any) -> Iterator[str]:
    """Keys of content parts that nothing reads."""
    for part in content if isinstance(content, list | tuple) else ():
        if isinstance(part, Mapping):
            yield from (f"content[].{key}" for key in part if key not in ("type", "text") and part[key] is not None)


def _unread_in_calls(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Keys of tool calls that nothing reads."""
    for call in calls:
        function = call.get("function")
        known: tuple[str, ...] = ("id", "type", "function")
        if isinstance(function, Mapping):
            names = (key for key in function if key not in ("name", "arguments") and function[key] is not None)
            yield from (f"tool_calls[].function.{key}" for key in names)
        else:
            known = (*known, "name", "arguments")
        yield from (f"tool_calls[].{key}" for key in call if key not in known and call[key] is not None)


def _sharegpt_message(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{where} must be an object with from and value, found {kind_of(item)}")
    if item.get("from") is None and "role" in item:
        return _openai_message(item, where)
    role = _SHAREGPT_ROLES.get(str(item.get("from")).lower())
    if role is None:
        allowed = ", ".join(_SHAREGPT_ROLES)
        raise RowRefused("unknown_role", f"{where}: from {shown(item.get('from'))} is unknown; allowed: {allowed}")
    value = item.get("value")
    converted = {key: inner for key, inner in item.items() if key not in ("from", "value")}
    has_calls = role == "assistant" and (item.get("tool_calls") or item.get("function_call") is not None)
    if role == "function_call":
        call = _parsed_call(content_text({"content": value}, where, may_be_null=False), where)
        converted |= {"role": "assistant", "content": "", "tool_calls": call if isinstance(call, list) else [call]}
    elif value is None and not has_calls:
        raise RowRefused("missing_field", f"{where} has no content")
    else:
        converted |= {"role": role, "content": value}
    message = dict(_openai_message(converted, where))
    hidden = ["content"] if item.get("content") not in (None, value) else []
    if _SHAREGPT_ROLES.get(str(item.get("role", item["from"])).lower()) != role:
        hidden.append("role")
    if hidden:
        message[_UNREAD] = [*message.get(_UNREAD, ()), *hidden]
    return message


def _parsed_call(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowRefused("wrong_type", f"{where}: a function_call's value must be JSON") from None


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """A tool call in the form that chat templates expect: arguments as an object, not as JSON text."""
    if not isinstance(call, Mapping):
        raise RowRefused("wrong_type", f"{where} must contain objects, found {kind_of(call)}")
    function = dict(call["function"]) if isinstance(call.get("function"), Mapping) else dict(call)
    if not isinstance(function.get("name"), str):
        raise RowRefused("wrong_type", f"{where}: a call without a function name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise RowRefused("wrong_type", f"{where}: arguments of {function['name']} are not JSON") from None
    result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = call["id"]
    return result


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") == "text":
        return part["text"]
    kind = part.get("type", "unknown") if isinstance(part, Mapping) else kind_of(part)
    raise RowRefused("wrong_type", f"{where}: content part of type {shown(kind)}; only text parts can be trained on")


def _listed(record: Mapping[str, Any]) -> str:
    names = [" ".join(str(name).split())[:40] for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
