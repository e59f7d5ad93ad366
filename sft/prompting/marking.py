"""Invisible marks in the strings of a conversation, which show where a chat template puts the strings.

A mark is one or two control characters or characters for private use, which no template writes and hardly any text
contains. In a text rendered with marks, they show where the strings of each message went. With the marks removed it
must equal the text rendered without them; otherwise the marks changed the behavior of the template, and nothing may be
concluded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from sft.prompting.control_tokens import strings_in
from sft.prompting.messages import THOUGHTS, RowRefused

_FINAL = (range(0x80, 0x85), range(0x86, 0xA0), range(0xE000, 0xF800))
"""Characters that are marks, in this order: an ASCII text takes 1 byte a character with the first ones, and 2 with the
others. U+0085 is white space."""
_INITIAL = range(0xF800, 0xF900)
"""Characters that make further marks, each before one of the others: for conversations of thousands of messages."""
_FINAL_CLASS, _INITIAL_CLASS = (
    "".join(f"{chr(codes[0])}-{chr(codes[-1])}" for codes in areas) for areas in (_FINAL, (_INITIAL,))
)
_MARK = re.compile(f"[{_INITIAL_CLASS}]?[{_FINAL_CLASS}]")
_ANY = re.compile(f"[{_INITIAL_CLASS}{_FINAL_CLASS}]")
_CLOSED_THOUGHTS = "</think>"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkPlacement:
    """Which strings are marked, and where. Several are tried, since some templates inspect or compare strings.

    A mark at an edge is placed inside the white space there, so that a template may trim it.
    """

    other_roles: str = "edges"
    """In contents of roles other than the assistant: at both `edges`, one in the `middle`, or `none`."""
    calls: bool = True
    """Whether names and arguments of tool calls are marked."""
    thoughts: bool = True
    """Whether thoughts outside the content are marked."""
    openings: bool = True
    """Whether the beginnings of assistant strings are marked too, not only their ends."""


PLACEMENTS = (
    MarkPlacement(),
    MarkPlacement(other_roles="middle"),
    MarkPlacement(other_roles="none"),
    MarkPlacement(other_roles="none", calls=False),
    MarkPlacement(other_roles="none", calls=False, thoughts=False),
    MarkPlacement(other_roles="none", calls=False, thoughts=False, openings=False),
)
"""From the most informative to the least intrusive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A mark at an edge (or in the middle) of a string of a message."""

    number: int
    """Number of the mark."""
    message: int
    """Index of the message."""
    kind: str
    """`content`, `thoughts` or `call`."""
    is_opening: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundMark:
    """A mark found in a rendered text. `position` counts the characters of the text without marks."""

    position: int
    mark: Mark


def answer_in(content: str) -> str:
    """The content, stripped; empty if it ends with its thoughts."""
    content = content.strip()
    return "" if content.endswith(_CLOSED_THOUGHTS) else content


class Marker:
    """Puts marks into messages and finds them in rendered text. Equal prefixes of a conversation get equal marks."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], placement: MarkPlacement, text: str):
        """
        Args:
            messages: The messages of a conversation.
            placement: Where to put marks.
            text: The text that they render to; its characters are not used as marks.

        Raises:
            RowRefused: `turn_not_found` if there are more strings than available marks.
        """
        self._marks: dict[str, Mark] = {}
        parts = (part for part in chain([text], strings_in(messages)) if not part.isascii())
        self._free = _all_marks({character for part in parts for character in _ANY.findall(part)})
        self._placement = placement
        self.messages: list[dict[str, Any]] = []
        self._first_numbers: list[int] = []
        for index, message in enumerate(messages):
            self._first_numbers.append(len(self._marks))
            self.messages.append(self._marked(index, message))
        self._characters = tuple(self._marks)
        self.marks = tuple(self._marks.values())
        """All of them, by number."""

    def first_number(self, index: int) -> int:
        """Number of the first mark of a message."""
        return self._first_numbers[index]

    def before(self, mark: Mark) -> str:
        """The content of the message before a mark, without marks; empty if the mark is not in the content."""
        content = str(self.messages[mark.message].get("content") or "")
        before, found, _ = content.partition(self._characters[mark.number])
        return self.split(before)[0] if found else ""

    def rest(self, index: int) -> str:
        """The content of a message after its last mark, without white space at its end."""
        content = str(self.messages[index].get("content") or "")
        ends = [end for _, end, _ in self._find(content)]
        return content[ends[-1] :].rstrip() if ends else ""

    def unmarked(self, index: int) -> str:
        """The content of a message without marks, without white space around it."""
        return str(self.messages[index].get("content") or "").strip()

    def structure(self, index: int) -> tuple[Any, ...]:
        """What a template may see of a message, except for the words in its strings."""
        message = self.messages[index]
        end = self._first_numbers[index + 1] if index + 1 < len(self.messages) else len(self.marks)
        kinds = tuple((mark.kind, mark.is_opening) for mark in self.marks[self._first_numbers[index] : end])
        content, calls = str(message.get("content") or ""), message.get("tool_calls") or ()
        end_of_content = content[len(content.rstrip()) :] if not calls else ""
        return message["role"], *message, len(calls), kinds, _CLOSED_THOUGHTS in content, end_of_content

    def split(self, marked_text: str) -> tuple[str, list[FoundMark]]:
        """A rendered text without its marks, and the marks with their positions, in order."""
        marks: list[FoundMark] = []
        parts: list[str] = []
        position = last = 0
        for start, end, mark in self._find(marked_text):
            parts.append(marked_text[last:start])
            position += start - last
            marks.append(FoundMark(position=position, mark=mark))
            last = end
        parts.append(marked_text[last:])
        return "".join(parts), marks

    def _find(self, marked_text: str) -> Iterator[tuple[int, int, Mark]]:
        """Where marks begin and end."""
        for found in _MARK.finditer(marked_text):
            characters = found.group()
            if characters not in self._marks:
                characters = characters[-1]  # the text itself has the other one before a mark
            if mark := self._marks.get(characters):
                yield found.end() - len(characters), found.end(), mark

    def _marked(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        marked = dict(message)
        is_own = message["role"] == "assistant"
        if self._placement.thoughts:
            for key in THOUGHTS:
                if isinstance(message.get(key), str):
                    marked[key] = self._at_edges(message[key], index, "thoughts")
        if isinstance(message.get("content"), str) and (is_own or self._placement.other_roles != "none"):
            put_marks = self._at_edges if is_own or self._placement.other_roles == "edges" else self._in_the_middle
            marked["content"] = put_marks(message["content"], index, "content")
        if self._placement.calls and message.get("tool_calls"):
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
            return text  # a template may test whether it is empty
        start = len(text) - len(text.lstrip())
        end = len(text.rstrip())
        if kind == "content" and not answer_in(text):
            # Only thoughts: a mark after them would look like an answer.
            end = len(text[: end - len(_CLOSED_THOUGHTS)].rstrip())
            start = min(start, end)
            kind = "thoughts"
        opening = self._new(index, kind, is_opening=True) if self._placement.openings and start < end else ""
        return text[:start] + opening + text[start:end] + self._new(index, kind) + text[end:]

    def _in_the_middle(self, text: str, index: int, kind: str) -> str:
        if not text.strip():
            return text
        middle = (len(text) - len(text.lstrip()) + len(text.rstrip()) + 1) // 2
        return text[:middle] + self._new(index, kind) + text[middle:]

    def _new(self, index: int, kind: str, *, is_opening: bool = False) -> str:
        character = next(self._free, None)
        if character is None:
            raise RowRefused("turn_not_found", "the conversation has too many strings to locate its messages")
        self._marks[character] = Mark(number=len(self._marks), message=index, kind=kind, is_opening=is_opening)
        return character


def _all_marks(taken: Collection[str]) -> Iterator[str]:
    """The marks without the characters that are taken."""

    def free(codes: Iterable[int]) -> Iterator[str]:
        return (chr(code) for code in codes if chr(code) not in taken)

    pairs = (first + last for first in free(_INITIAL) for last in free(chain(*_FINAL)))
    return chain(free(chain(*_FINAL)), pairs)
