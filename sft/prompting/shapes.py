"""Conversations of the same shape: the literal text between their contents, learned once and checked on every row.

Locating turns by marks renders a conversation several times. Most conversations of a dataset have a shape (the sequence
of roles) seen before, and most templates write the same literal text around contents of the same shape. A row whose
text is exactly these literals with its own contents in between needs no further rendering. In all other rows, turns are
located by marks.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

from sft.common.data_records import Conversation
from sft.prompting.marking import answer_in
from sft.prompting.turns import PROMPT_GOES_FURTHER, FoundTurns

_MAX_LITERALS = 1 << 17
"""Literals in all shapes: those of long conversations are many, and hardly ever seen again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    literals: tuple[str, ...]
    """The text that the template writes before each content and after the last: one more than messages."""
    is_trimmed: bool
    """Whether the template strips contents."""
    turns: tuple[tuple[int, int, int], ...]
    """For each assistant turn: index of its message, trained characters of the literal before it, and of the one after
    it."""
    unmatched: tuple[str, ...]
    """A turn that begins with one of these must be located by marks: a generation prompt may extend into it."""
    notes: tuple[str, ...]


class Shapes:
    """The shapes seen so far, of one template."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._num_literals = 0

    def find(self, conversation: Conversation, text: str) -> FoundTurns | None:
        """The turns, if the shape is known and the text matches it; None otherwise."""
        shape = self._shapes.get(_key(conversation))
        if shape is None or not _is_plain(conversation):
            return None
        contents = [message["content"] for message in conversation.messages]
        if shape.is_trimmed:
            contents = [content.strip() for content in contents]
        parts = [*chain.from_iterable(zip(shape.literals, contents, strict=False)), shape.literals[-1]]
        if "".join(parts) != text:
            return None
        ends = list(accumulate(map(len, parts)))
        spans = {
            # A content begins where the literal before it ends.
            index: (ends[2 * index] - before, ends[2 * index + 1] + after)
            for index, before, after in shape.turns
        }
        if shape.unmatched and any(text.startswith(shape.unmatched, start) for start, _ in spans.values()):
            return None
        return FoundTurns(spans=spans, notes=shape.notes)

    def learn(self, conversation: Conversation, text: str, turns: FoundTurns) -> None:
        """Remember the shape of a conversation whose turns were located by marks, if it has one."""
        key = _key(conversation)
        if self._num_literals + len(key) > _MAX_LITERALS or not turns.marks or not _is_plain(conversation):
            return
        if set(turns.notes) - {PROMPT_GOES_FURTHER}:
            return  # other notes depend on the contents
        shape = _shape_of(conversation, text, turns)
        if shape is not None:
            self._shapes[key] = shape
            self._num_literals += len(shape.literals)


def _key(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message["role"] for message in conversation.messages)


def _is_plain(conversation: Conversation) -> bool:
    """Whether a conversation consists only of contents, none of them empty or only thoughts."""
    return not conversation.tools and all(
        len(message) == 2 and answer_in(message["content"]) for message in conversation.messages
    )


def _shape_of(conversation: Conversation, text: str, turns: FoundTurns) -> _Shape | None:
    """The shape, if the text contains every content once, complete and in order; None otherwise."""
    messages, marks = conversation.messages, turns.marks
    expected = [(index, is_opening) for index in range(len(messages)) for is_opening in (True, False)]
    if [(found.mark.message, found.mark.is_opening) for found in marks] != expected:
        return None
    inner = [message["content"].strip() for message in messages]
    if any(
        text[opening.position : closing.position] != content
        for content, opening, closing in zip(inner, marks[::2], marks[1::2], strict=True)
    ):
        return None
    return _literal_shape(messages, text, turns)


def _literal_shape(messages: Sequence[Mapping[str, Any]], text: str, turns: FoundTurns) -> _Shape | None:
    """The shape, if the template writes all contents unchanged, or strips all of them; None otherwise."""
    for is_trimmed in (False, True):
        # Marks are inside the white space at the edges of a content.
        contents = [message["content"] for message in messages]
        bounds = []
        for content, opening, closing in zip(contents, turns.marks[::2], turns.marks[1::2], strict=True):
            left = 0 if is_trimmed else len(content) - len(content.lstrip())
            right = 0 if is_trimmed else len(content) - len(content.rstrip())
            bounds.append((opening.position - left, closing.position + right))
        edges = [0, *(edge for bound in bounds for edge in bound), len(text)]
        kept = [content.strip() if is_trimmed else content for content in contents]
        is_unchanged = all(text[a:b] == content for (a, b), content in zip(bounds, kept, strict=True))
        if not is_unchanged or edges != sorted(edges):
            continue
        found = []
        for index, span in turns.spans.items():
            begin, end = bounds[index]
            room = (edges[2 * index], edges[2 * index + 3])
            if not isinstance(span, tuple) or not room[0] <= span[0] <= begin <= end <= span[1] <= room[1]:
                return None
            found.append((index, begin - span[0], span[1] - end))
        return _Shape(
            literals=tuple(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)),
            is_trimmed=is_trimmed,
            turns=tuple(found),
            unmatched=tuple(
                c for prompt in turns.unmatched_prompts for c in (*prompt.lstrip()[:1], *string.whitespace)
            ),
            notes=turns.notes,
        )
    return None
