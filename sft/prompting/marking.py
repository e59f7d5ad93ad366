"""Invisible marks in the strings of a conversation, to see where a template puts them.

A mark is one character of a private-use plane, which no template writes and hardly any text holds. Rendered with marks,
a text tells where each message's strings went; with the marks taken out it must equal the text rendered without them,
or the marks changed what the template did and nothing may be concluded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.prompting.messages import RowRefused

_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Supplementary private use areas A and B."""
_MARKS = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_CLOSED_THOUGHTS = "</think>"
THOUGHTS = ("reasoning_content", "thinking")
"""Keys of a message under which its thoughts stand, apart from its content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placing:
    """Where marks go. Some templates look at how a string begins or ends, or compare it: other places are tried then.

    A mark at an edge stands inside the white space there, so that a template may trim it.
    """

    others: str = "edges"
    """In contents of other roles than the assistant: at their `edges`, one in the `middle`, or `none`."""
    calls: bool = True
    """Whether names and arguments of tool calls are marked."""
    thoughts: bool = True
    """Whether thoughts beside the content are marked."""
    openings: bool = True
    """Whether the beginnings of the assistant's strings are marked as well as their ends."""


PLACINGS = (
    Placing(),
    Placing(others="middle"),
    Placing(others="none"),
    Placing(others="none", calls=False),
    Placing(others="none", calls=False, thoughts=False),
    Placing(others="none", calls=False, thoughts=False, openings=False),
)
"""From the one that tells most to the one that disturbs least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """What a mark stands at: an edge of a string (or its middle) of a message."""

    number: int
    """Which of all marks it is."""
    message: int
    """Index of the message."""
    kind: str
    """`content`, `thoughts` or `call`."""
    is_opening: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedPlace:
    """A mark as found in a rendered text; `position` counts characters of the text without marks."""

    position: int
    mark: Mark


def answer_in(content: str) -> str:
    """A content without white space at its edges; empty if it ends with its thoughts."""
    content = content.strip()
    return "" if content.endswith(_CLOSED_THOUGHTS) else content


class Marker:
    """Puts marks into messages and finds them again. The same prefix of a conversation gets the same marks."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], placing: Placing, text: str):
        """Args:
            messages: of a conversation.
            placing: where to put marks.
            text: what they render to; its characters are no marks.

        Raises:
            RowRefused: `turn_not_found` if there are more strings than marks.
        """
        self._marks: dict[str, Mark] = {}
        taken = set(_MARKS.findall(text + json.dumps(messages, ensure_ascii=False, default=str)))
        self._free = (chr(code) for code in range(_FIRST, _LAST + 1) if chr(code) not in taken)
        self._placing = placing
        self.messages = [self._marked(index, message) for index, message in enumerate(messages)]

    def split(self, marked_text: str) -> tuple[str, list[MarkedPlace]]:
        """A rendered text without its marks, and where they stood, in order."""
        places: list[MarkedPlace] = []
        parts: list[str] = []
        position = last = 0
        for found in _MARKS.finditer(marked_text):
            mark = self._marks.get(found.group())
            if mark is not None:
                part = marked_text[last : found.start()]
                position += len(part)
                parts.append(part)
                places.append(MarkedPlace(position=position, mark=mark))
                last = found.end()
        parts.append(marked_text[last:])
        return "".join(parts), places

    def _marked(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        marked = dict(message)
        is_own = message["role"] == "assistant"
        if self._placing.thoughts:
            for key in THOUGHTS:
                if isinstance(message.get(key), str):
                    marked[key] = self._at_edges(message[key], index, "thoughts")
        if isinstance(message.get("content"), str) and (is_own or self._placing.others != "none"):
            place = self._at_edges if is_own or self._placing.others == "edges" else self._in_the_middle
            marked["content"] = place(message["content"], index, "content")
        if self._placing.calls and message.get("tool_calls"):
            marked["tool_calls"] = [self._marked_call(call, index) for call in message["tool_calls"]]
        return marked

    def _marked_call(self, call: Mapping[str, Any], index: int) -> dict[str, Any]:
        function = dict(call["function"])
        function["name"] = self._at_edges(function["name"], index, "call")
        function["arguments"] = self._marked_value(function["arguments"], index)
        return {**call, "function": function}

    def _marked_value(self, value: Any, index: int) -> Any:
        if isinstance(value, Mapping):
            return {name: self._marked_value(inner, index) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._marked_value(inner, index) for inner in value]
        return self._at_edges(value, index, "call") if isinstance(value, str) else value

    def _at_edges(self, text: str, index: int, kind: str) -> str:
        if not text.strip():
            return text  # a template asks whether there is any
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        if kind == "content" and not answer_in(text):
            # Thoughts and nothing behind them: a mark behind them would be an answer.
            end = len(text[: end - len(_CLOSED_THOUGHTS)].rstrip())
            start = min(start, end)
            kind = "thoughts"
        opening = self._new(index, kind, is_opening=True) if self._placing.openings and start < end else ""
        return text[:start] + opening + text[start:end] + self._new(index, kind) + text[end:]

    def _in_the_middle(self, text: str, index: int, kind: str) -> str:
        if not text.strip():
            return text
        middle = (len(text) - len(text.lstrip()) + len(text.rstrip()) + 1) // 2
        return text[:middle] + self._new(index, kind) + text[middle:]

    def _new(self, index: int, kind: str, *, is_opening: bool = False) -> str:
        character = next(self._free, None)
        if character is None:
            raise RowRefused("turn_not_found", "the conversation is too large to find the turns in it")
        self._marks[character] = Mark(number=len(self._marks), message=index, kind=kind, is_opening=is_opening)
        return character
