"""A conversation rendered with marks, and what the template writes at the ends of its prefixes.

The template renders many prefixes of a conversation to locate its turns, and the cost of all of them grows with the
square of the number of messages. In a long conversation most of them end alike: where the messages around the end have
the same structure, and the text of the complete conversation has the same literals there, the end of an earlier prefix
is taken, without the contents that are in it. Any other prefix is rendered.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft.prompting.marking import FoundMark, Mark, Marker
from sft.prompting.messages import RowRefused
from sft.prompting.template import ChatTemplate, Messages, common_length

RENDERED_MESSAGES = 32
"""Prefixes of up to this many messages are always rendered."""
_MOST_RENDERED = 1_000_000
"""Messages in all rendered prefixes of one conversation."""
_DIGITS = re.compile(r"\d+")

Pieces = tuple[str, ...]


class MarkedText:
    """A text without its marks, and where they were."""

    def __init__(self, text: str, marks: Sequence[FoundMark]):
        self.text = text
        self.marks = marks
        self._positions = [found.position for found in marks]
        self._by_message = sorted(marks, key=lambda found: found.mark.message)
        self._messages = array("q", (found.mark.message for found in self._by_message))

    def of_message(self, message: int) -> Sequence[FoundMark]:
        """The marks of a message, in order."""
        return self._by_message[bisect_left(self._messages, message) : bisect_right(self._messages, message)]

    def positions_of(self, mark: Mark) -> Sequence[int]:
        """Where a mark is, in order: a template may write a string more than once."""
        return [found.position for found in self.of_message(mark.message) if found.mark == mark]

    def next_other(self, message: int, position: int) -> int | None:
        """The first position, from the given one on, of a mark of another message; None if there is none."""
        for found in self.marks[bisect_left(self._positions, position) :]:
            if found.mark.message != message:
                return found.position
        return None

    def is_written_between(self, message: int, start: int, end: int) -> bool:
        """Whether another message has a mark between two positions, excluding both."""
        inside = self.marks[bisect_right(self._positions, start) : bisect_left(self._positions, end)]
        return any(found.mark.message != message for found in inside)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixEnd:
    """What the template writes at the end of a prefix of a conversation."""

    last: Mark | None
    """The last mark; None if there is none."""
    literal: str
    """The text after it; all of it if there is no mark."""
    own: tuple[Mark, ...]
    """The marks of the last message, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _KnownEnd:
    """An end, in relation to where the prefix ends."""

    literals: Pieces
    """The text after the last mark, without the contents in it."""
    last: tuple[int, int]
    """The last mark: how many messages before the end, and its number within the message."""
    own: tuple[int, ...]
    context: Pieces
    """The literals of the complete text around the end, with their digits."""


class PrefixRenderer:
    """Renders prefixes of one conversation, up to a number of messages in all of them."""

    def __init__(self, template: ChatTemplate, tools: Sequence[Any] | None):
        self._template = template
        self._tools = tools
        self._num_rendered = 0

    def __call__(self, messages: Messages, count: int, *, add_generation_prompt: bool = False) -> str:
        """The text of the first `count` messages.

        Raises:
            RowRefused: If the template refuses them, or `turn_not_found` if too many have been rendered.
        """
        self._num_rendered += count
        if self._num_rendered > max(_MOST_RENDERED, 20 * len(messages)):
            raise RowRefused(
                "turn_not_found",
                f"message {count + 1} of {len(messages):,}: the chat template writes the messages too differently to "
                "locate each turn of a conversation of this length; split it",
            )
        return self._template.apply(messages[:count], self._tools, add_generation_prompt=add_generation_prompt)


class PrefixEnds:
    """The ends of the prefixes of one conversation."""

    def __init__(self, render: PrefixRenderer, marker: Marker, marked: MarkedText):
        """
        Args:
            render: Renders prefixes.
            marker: Marks the messages of the conversation.
            marked: The text of the complete conversation.
        """
        self._render = render
        self._marker = marker
        self._marked = marked
        self._known: dict[tuple[Any, ...], _KnownEnd | None] = {}

    def find(self, count: int, *, add_generation_prompt: bool = False) -> PrefixEnd:
        """The end of the first `count` messages, which are not all.

        Raises:
            RowRefused: As `PrefixRenderer`.
        """
        key, context = self._context(count, add_generation_prompt)
        known = self._known.get(key) if key else None
        if known is not None and count > RENDERED_MESSAGES:
            end = self._from_known(known, count, context)
            if end is not None:
                return end
        end = self._of(self.render(count, add_generation_prompt=add_generation_prompt), count)
        if key:
            # The literals around the end decide it only if they begin where it begins.
            is_covered = end.last is not None and end.last == self._last_mark(count)
            new = self._relative(end, count, context) if is_covered else None
            # Two different ends in the same context: it does not decide them.
            self._known[key] = new if key not in self._known or _is_same(self._known[key], new) else None
        return end

    def render(self, count: int, *, add_generation_prompt: bool = False) -> MarkedText:
        """The first `count` messages with their marks.

        Raises:
            RowRefused: As `PrefixRenderer`.
        """
        rendered = self._render(self._marker.messages, count, add_generation_prompt=add_generation_prompt)
        return MarkedText(*self._marker.split(rendered))

    def _of(self, prefix: MarkedText, count: int) -> PrefixEnd:
        last = prefix.marks[-1] if prefix.marks else None
        return PrefixEnd(
            last=last.mark if last else None,
            literal=prefix.text[last.position :] if last else prefix.text,
            own=tuple(found.mark for found in prefix.of_message(count - 1)),
        )

    def _relative(self, end: PrefixEnd, count: int, context: Pieces) -> _KnownEnd | None:
        if end.last is None:
            return None
        message = end.last.message
        pieces = [self._marker.rest(message), *map(self._marker.unmarked, range(message + 1, count))]
        literals = _without(end.literal, pieces)
        if literals is None:
            return None
        return _KnownEnd(
            literals=literals,
            last=(count - message, end.last.number - self._marker.first_number(message)),
            own=tuple(mark.number - self._marker.first_number(count - 1) for mark in end.own),
            context=context,
        )

    def _from_known(self, known: _KnownEnd, count: int, context: Pieces) -> PrefixEnd | None:
        if known.context != context and any(map(_DIGITS.search, known.literals)):
            return None  # its numbers may count messages
        distance, number = known.last
        message = count - distance
        pieces = [self._marker.rest(message), *map(self._marker.unmarked, range(message + 1, count))]
        if len(pieces) != len(known.literals):
            return None
        marks, own = self._marker.marks, self._marker.first_number(count - 1)
        return PrefixEnd(
            last=marks[self._marker.first_number(message) + number],
            literal="".join(piece + literal for piece, literal in zip(pieces, known.literals, strict=True)),
            own=tuple(marks[own + offset] for offset in known.own),
        )

    def _last_marked(self, count: int) -> int:
        """The last of the first `count` messages that has marks in the complete text, or one of the last few."""
        return next(
            (i for i in range(count - 1, max(count - 5, 0), -1) if self._marked.of_message(i)), max(count - 5, 0)
        )

    def _last_mark(self, count: int) -> Mark | None:
        marks = self._marked.of_message(self._last_marked(count))
        return marks[-1].mark if marks else None

    def _structure(self, index: int) -> tuple[Any, ...]:
        """What a template may see of a message, and which of its marks the complete text has."""
        first = self._marker.first_number(index)
        written = tuple(found.mark.number - first for found in self._marked.of_message(index))
        return self._marker.structure(index), written

    def _context(self, count: int, add_generation_prompt: bool) -> tuple[tuple[Any, ...], Pieces]:
        """A key of the prefixes that end alike, and the literals around the end; empty for a prefix of its own."""
        messages = self._marker.messages
        before, after = self._last_marked(count), count
        while after < len(messages) - 1 and not self._marked.of_message(after) and after - count < 4:
            after += 1
        opened, closed = self._marked.of_message(before), self._marked.of_message(after)
        if not opened or not closed or closed[0].position < opened[-1].position:
            return (), ()
        written = self._marked.text[opened[-1].position : closed[0].position]
        # Content before the first mark, if the template omits where the content begins.
        content = self._marker.before(closed[0].mark)
        same = common_length(written[::-1], content[::-1], 0)
        written = written[: len(written) - same]
        pieces = [self._marker.rest(before), *map(self._marker.unmarked, range(before + 1, after))]
        literals = _without(written, pieces)
        if literals is None:
            return (), ()
        roles = tuple(message["role"] for message in messages[max(before - 1, 0) : after + 1])
        structures = tuple(map(self._structure, range(before, count)))
        without_numbers = tuple(_DIGITS.sub("0", literal) for literal in literals)
        return (
            add_generation_prompt,
            count % 2,
            min(count, 4),
            count - before,
            roles,
            structures,
            without_numbers,
        ), literals


def _without(text: str, pieces: Sequence[str]) -> Pieces | None:
    """The text that follows each of the pieces, which it contains in this order, the first at its beginning."""
    position, literals = 0, []
    for number, piece in enumerate(pieces):
        found = text.find(piece, position)
        if found < 0 or (number == 0 and found):
            return None
        if number:
            literals.append(text[position:found])
        position = found + len(piece)
    return (*literals, text[position:])


def _is_same(known: _KnownEnd | None, new: _KnownEnd | None) -> bool:
    if known is None or new is None:
        return False
    is_alike = (known.last, known.own) == (new.last, new.own)
    return is_alike and (known.literals == new.literals or any(map(_DIGITS.search, new.literals)))
