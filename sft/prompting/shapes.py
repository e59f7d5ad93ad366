"""Conversations of the same shape: the literal text between their contents, learned once and checked on every row.

Finding turns by marks renders a conversation several times. Most conversations of a dataset have a shape (the sequence
of roles) that was seen before, and most templates write the same literal text around contents of the same shape. A row
whose text is exactly those literals with its own contents in between needs no further rendering; any other row is
looked at by marks.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from itertools import accumulate, chain

from sft.common.data_records import Conversation
from sft.prompting.marking import answer_in
from sft.prompting.turns import PROMPT_GOES_FURTHER, FoundTurns

_MOST_SHAPES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    literals: tuple[str, ...]
    """What the template writes before each content, and behind the last: one more than messages."""
    is_trimmed: bool
    """Whether contents lose the white space at their edges."""
    turns: tuple[tuple[int, int, int], ...]
    """For each turn of the assistant: its message, characters of the literal before it that are trained, and of the
    literal behind it."""
    unmet: tuple[str, ...]
    """A turn that begins with one of these has to be looked at by itself: a generation prompt may reach into it."""
    notes: tuple[str, ...]


class Shapes:
    """The shapes seen so far, of one template."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def find(self, conversation: Conversation, text: str) -> FoundTurns | None:
        """The turns, if the shape is known and the text has it; None else."""
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
            # Where a content begins, the literal before it ends.
            index: (ends[2 * index] - before, ends[2 * index + 1] + behind)
            for index, before, behind in shape.turns
        }
        if shape.unmet and any(text.startswith(shape.unmet, start) for start, _ in spans.values()):
            return None
        return FoundTurns(spans=spans, notes=shape.notes)

    def learn(self, conversation: Conversation, text: str, turns: FoundTurns) -> None:
        """Remembers the shape of a conversation whose turns were found, if it has one."""
        key = _key(conversation)
        if len(self._shapes) >= _MOST_SHAPES or not turns.places or not _is_plain(conversation):
            return
        if set(turns.notes) - {PROMPT_GOES_FURTHER}:
            return  # others are of the contents
        shape = _shape_of(conversation, text, turns)
        if shape is not None:
            self._shapes[key] = shape


def _key(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message["role"] for message in conversation.messages)


def _is_plain(conversation: Conversation) -> bool:
    """Whether contents are all that there is to a conversation, and each holds an answer (or a question)."""
    return not conversation.tools and all(
        len(message) == 2 and answer_in(message["content"]) for message in conversation.messages
    )


def _shape_of(conversation: Conversation, text: str, turns: FoundTurns) -> _Shape | None:
    """The shape, where every content stands in the text once, whole and in order; None else."""
    messages, places = conversation.messages, turns.places
    expected = [(index, is_opening) for index in range(len(messages)) for is_opening in (True, False)]
    if [(place.mark.message, place.mark.is_opening) for place in places] != expected:
        return None
    inner = [message["content"].strip() for message in messages]
    if any(
        text[opening.position : closing.position] != content
        for content, opening, closing in zip(inner, places[::2], places[1::2], strict=True)
    ):
        return None
    return _literal_shape(messages, text, turns)


def _literal_shape(messages, text: str, turns: FoundTurns) -> _Shape | None:
    """The literals around contents that are either all as they were, or all trimmed."""
    for is_trimmed in (False, True):
        # The marks stand inside the white space at a content's edges.
        contents = [message["content"] for message in messages]
        bounds = []
        for content, opening, closing in zip(contents, turns.places[::2], turns.places[1::2], strict=True):
            left = 0 if is_trimmed else len(content) - len(content.lstrip())
            right = 0 if is_trimmed else len(content) - len(content.rstrip())
            bounds.append((opening.position - left, closing.position + right))
        edges = [0, *(edge for bound in bounds for edge in bound), len(text)]
        kept = [content.strip() if is_trimmed else content for content in contents]
        is_as_written = all(text[a:b] == content for (a, b), content in zip(bounds, kept, strict=True))
        if not is_as_written or edges != sorted(edges):
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
            unmet=tuple(c for unmet in turns.unmet_prompts for c in (*unmet.lstrip()[:1], *string.whitespace)),
            notes=turns.notes,
        )
    return None
