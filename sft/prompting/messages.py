"""Chat messages in all common forms, converted to one form: `role`, `content` as text, and tool calls."""

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
_TRAIN_KEYS: dict[str, dict[Any, bool]] = {"train": {True: True, False: False}, "weight": {1: True, 0: False}}
"""Keys that set whether a message is trained -> their allowed values."""
_KEPT_KEYS = ("tool_call_id", "name", "reasoning_content", "thinking")


class RowRefused(Exception):
    """A row cannot be used, for the reason in `problem`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.problem = RowProblem(reason=reason, message=message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with both arguments: by default an exception is rebuilt from its message only."""
        return type(self), (self.problem.reason, self.problem.message)


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
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowRefused("not_unicode", f"{name!r} contains an unpaired surrogate, which is not a character") from None
    if "\0" in value:
        raise RowRefused("nul_character", f"{name!r} contains a NUL character: a binary file or corrupt text")
    return value


def kind_of(value: Any) -> str:
    """The name of a JSON type in a message."""
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    return {list: "a list", dict: "an object", str: "text", type(None): "null"}.get(type(value), type(value).__name__)


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
    untrained = frozenset(i for i, message in enumerate(messages) if not message.get("train", True))
    if untrained:
        messages = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    return Conversation(messages=tuple(messages), tools=tools, untrained=untrained)


def _is_untrained(item: Mapping[str, Any], role: str, where: str) -> bool:
    """Whether `train` or `weight` excludes a message from training."""
    settings = [_train_setting(item, key, allowed, where) for key, allowed in _TRAIN_KEYS.items()]
    if True in settings and role != "assistant":
        raise RowRefused(
            "wrong_type", f"{where}: only assistant messages can be trained; this one has the role {role!r}"
        )
    return False in settings and role == "assistant"


def _train_setting(item: Mapping[str, Any], key: str, allowed: Mapping[Any, bool], where: str) -> bool | None:
    """Whether a message is trained according to one of its keys; None if the key is missing."""
    value = item.get(key)
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or isinstance(value, bool) != (key == "train") or value not in allowed:
        choices = " or ".join(str(choice).lower() for choice in allowed)
        raise RowRefused("wrong_type", f"{where}: {key} must be {choices}, found {_shown(value)}")
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


def _openai_message(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{where} must be an object with role and content, found {kind_of(item)}")
    role = item.get("role")
    if role == "function":
        role = "tool"
    if role not in ROLES:
        raise RowRefused("unknown_role", f"{where}: role {_shown(role)} is unknown; allowed: {', '.join(ROLES)}")
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
        calls = _list_of(tool_calls, f"{where}.tool_calls", "calls")
        message["tool_calls"] = [_tool_call(call, f"{where}.tool_calls") for call in calls]
    if ("train" in item or "weight" in item) and _is_untrained(item, role, where):
        message["train"] = False
    return message


def _sharegpt_message(item: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise RowRefused("wrong_type", f"{where} must be an object with from and value, found {kind_of(item)}")
    if "from" not in item and "role" in item:
        return _openai_message(item, where)
    role = _SHAREGPT_ROLES.get(str(item.get("from")).lower())
    if role is None:
        allowed = ", ".join(_SHAREGPT_ROLES)
        raise RowRefused("unknown_role", f"{where}: from {_shown(item.get('from'))} is unknown; allowed: {allowed}")
    if role == "assistant" and item.get("tool_calls"):
        return _openai_message({**item, "role": role, "content": item.get("value")}, where)
    content = content_text({"content": item.get("value")}, where, may_be_null=False)
    own_role = "assistant" if role == "function_call" else role
    untrained = {"train": False} if _is_untrained(item, own_role, where) else {}
    if role != "function_call":
        return {"role": role, "content": content, **untrained}
    try:
        call = json.loads(content)
    except (ValueError, RecursionError):
        raise RowRefused("wrong_type", f"{where}: a function_call's value must be JSON") from None
    calls = call if isinstance(call, list) else [call]
    return {"role": "assistant", "content": "", "tool_calls": [_tool_call(call, where) for call in calls], **untrained}


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
    raise RowRefused("wrong_type", f"{where}: content part of type {_shown(kind)}; only text parts can be trained on")


def _shown(value: Any) -> str:
    """A value in a message, shortened to one line."""
    text = repr(value) if isinstance(value, str | int | float | None) else kind_of(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _listed(record: Mapping[str, Any]) -> str:
    names = [" ".join(str(name).split())[:40] for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
