"""The keys of messages that the chat template reads, and those that nothing reads.

A key beside the ones that this package knows is given to the template, which may have a use for it. If the text of the
conversation is the same without it, nothing of it is trained or shown, and it is counted by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.messages import THOUGHTS, RowRefused
from sft.prompting.template import ChatTemplate

_RENDERED = {"role", "content", "tool_calls"}
_CALL_ID = "tool_calls[].id"
_PROBE = "zqxj_key"
"""A key that no template names."""

Keys = set[tuple[str, str]]
"""Role of a message, and a key."""


class MessageKeys:
    """Decides which keys of messages a template gets."""

    def __init__(self, template: ChatTemplate):
        self._template = template

    def offer(self, conversation: Conversation) -> Conversation:
        """The conversation with the keys that have an effect on its text; `unread_keys` names the others.

        Thoughts are offered under every name that templates have for them.
        """
        if not conversation.other_keys and all(len(message) == 2 for message in conversation.messages):
            return conversation
        others = conversation.other_keys
        messages = [{**message, **others.get(i, {})} for i, message in enumerate(conversation.messages)]
        found: Keys = {
            (message["role"], key) for message in messages for key in message if key not in (*_RENDERED, *THOUGHTS)
        }
        found |= {(m["role"], _CALL_ID) for m in messages if any("id" in call for call in m.get("tool_calls", ()))}
        unread = {pair for pair in found if not self._may_read(pair[1])}
        given = [with_thoughts(message) for message in _without(messages, unread)]
        unread |= self._without_effect(given, conversation.tools, found - unread)
        names = {key for _, key in unread}
        if not any(map(self._may_read, THOUGHTS)):
            names |= {key for message in messages for key in THOUGHTS if key in message}
        return replace(
            conversation,
            messages=tuple(_without(given, unread)),
            other_keys={},
            unread_keys=(*conversation.unread_keys, *sorted(names)),
        )

    def _may_read(self, key: str) -> bool:
        """Whether the template names a key, or reads messages as a whole. What it does not name, it cannot read."""
        return key.rpartition(".")[2] in self._template.source or self._reads_whole_messages

    @cached_property
    def _reads_whole_messages(self) -> bool:
        """Whether the template writes keys that it does not name (`message | tojson`)."""
        turns = [{"role": role, "content": "x", _PROBE: "x"} for role in ("user", "assistant")]
        for before in ([], [{"role": "system", "content": "x", _PROBE: "x"}]):
            try:
                return _PROBE in self._template.apply([*before, *turns, *turns], None)
            except RowRefused:
                continue
        return False

    def _without_effect(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, keys: Keys) -> Keys:
        """The keys without which the text of the conversation is the same, all of them together."""
        if not keys:
            return set()
        try:
            text = self._template.apply(messages, tools)
        except RowRefused:
            return set()  # the row is refused when it is rendered

        def is_same(removed: Keys) -> bool:
            try:
                return self._template.apply(_without(messages, removed), tools) == text
            except RowRefused:
                return False

        if is_same(keys):
            return keys
        unread: Keys = set()
        for pair in sorted(keys):
            if is_same(unread | {pair}):
                unread.add(pair)
        return unread


def with_thoughts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its thoughts under every name: templates, engines and transformers do not agree on one."""
    thoughts = next((message[key] for key in THOUGHTS if message.get(key)), None)
    return message if thoughts is None else {**message, **dict.fromkeys(THOUGHTS, thoughts)}


def _without(messages: Iterable[Mapping[str, Any]], keys: Keys) -> list[Mapping[str, Any]]:
    return [_message_without(message, keys) for message in messages] if keys else list(messages)


def _message_without(message: Mapping[str, Any], keys: Keys) -> Mapping[str, Any]:
    role = message["role"]
    kept = {key: value for key, value in message.items() if (role, key) not in keys}
    if (role, _CALL_ID) in keys and message.get("tool_calls"):
        calls = message["tool_calls"]
        kept["tool_calls"] = [{key: value for key, value in call.items() if key != "id"} for call in calls]
    return kept
