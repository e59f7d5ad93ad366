"""Tokens of a long text, made in overlapping parts: a tokenizer needs more than a hundred bytes for a character.

The parts are joined only at closed places (`sft/prompting/closed_places.py`), and only if both parts, which overlap
there, have the same tokens around the place. Then the tokens are those of the whole text:

- At the edge of a piece, which the model never crosses, the pieces on both sides are those of the whole text.
- Inside a piece, byte-pair encoding merges two neighbors at a time, the pair of lowest rank first. As long as no merge
  crosses the place, each side is merged as it is alone. Whether one crosses is decided by the two tokens beside it, and
  in the parts, which have both tokens, none did.

A text without such places (a single letter, a million times) is tokenized whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft.prompting.closed_places import ClosedPlaces

LONG = 100_000
"""Characters of a text that is tokenized in parts."""
PART = 1 << 14
"""Least number of characters of a part; half of it in a text of less than ten parts."""
_COMPARED = 128
"""Characters on each side of a place in which all tokens of both parts have to be the same."""

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens of one text, and the characters `[start, end)` of each: integers `[T]` each."""


def position_type(num_characters: int) -> type[np.signedinteger]:
    """The type of positions in that many characters or bytes."""
    return np.int32 if num_characters < 2**31 else np.int64


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedParts:
    """The tokens of one text in parts, in order."""

    input_ids: list[np.ndarray] = field(default_factory=list)
    starts: list[np.ndarray] = field(default_factory=list)
    ends: list[np.ndarray] = field(default_factory=list)

    def append(self, part: Encoded) -> None:
        self.insert(len(self.input_ids), part)

    def insert(self, index: int, part: Encoded) -> None:
        for own, values in zip((self.input_ids, self.starts, self.ends), part, strict=True):
            own.insert(index, values)

    def drop_first_token(self) -> None:
        for own in (self.input_ids, self.starts, self.ends):
            own[0] = own[0][1:]

    def joined(self) -> Encoded:
        """All tokens. The parts are given up, one column at a time, since memory would hold the tokens twice."""
        columns = []
        for parts in (self.input_ids, self.starts, self.ends):
            columns.append(np.concatenate(parts))
            parts.clear()
        return columns[0], columns[1], columns[2]


class LongTexts:
    """Tokenizes long texts in parts."""

    def __init__(self, backend: Any):
        """
        Args:
            backend: A tokenizer of the `tokenizers` library.
        """
        self._places = ClosedPlaces(backend)

    def encode(self, text: str, encode: Callable[[str], Encoded]) -> EncodedParts:
        """The tokens of a text.

        Args:
            text: The text.
            encode: Tokenizes a text, without adding tokens to it.
        """
        size = PART if len(text) > 10 * PART else PART // 2
        while size < len(text):
            parts = self._in_parts(text, encode, size)
            if parts is not None:
                return parts
            size *= 8
        whole = EncodedParts()
        whole.append(encode(text))
        return whole

    def _in_parts(self, text: str, encode: Callable[[str], Encoded], size: int) -> EncodedParts | None:
        """The tokens, in parts of at least `size` characters; None if two parts do not have the same tokens."""
        overlap = self._places.window
        result = EncodedParts()
        begin = first = 0
        places: list[int] = []
        previous: Encoded | None = None
        while True:
            following = self._find(text, begin + overlap + size, size)
            end = following[-1] + overlap if following else len(text)
            part = _moved(encode(text[begin:end]), begin)
            if previous is not None:
                joint = next(filter(None, (_joint(previous, part, place) for place in places)), None)
                if joint is None:
                    return None
                result.append(_cut(previous, first, joint[0]))
                first = joint[1]
            if not following:
                result.append(_cut(part, first, None))
                return result
            previous, places, begin = part, following, following[0] - overlap

    def _find(self, text: str, start: int, step: int) -> list[int]:
        """The first closed places at `start`, or further on where there are none."""
        while start < len(text):
            if places := self._places.find(text, start):
                return places
            start += step
        return []


def _joint(first: Encoded, second: Encoded, place: int) -> tuple[int, int] | None:
    """The first token from a place on in both parts, if they have the same tokens around it, some on each side."""
    found, around = [], []
    for _, starts, ends in (first, second):
        index = int(np.argmax(starts >= place))
        if not index or ends[index - 1] > place:
            return None
        is_near = (starts >= place - _COMPARED) & (ends <= place + _COMPARED)
        found.append(index)
        around.append(is_near)
    columns = zip(first, second, strict=True)
    if not all(np.array_equal(one[around[0]], other[around[1]]) for one, other in columns):
        return None
    is_beside = all(near[index - 1] and near[index] for near, index in zip(around, found, strict=True))
    return (found[0], found[1]) if is_beside else None


def _moved(encoded: Encoded, characters: int) -> Encoded:
    input_ids, starts, ends = encoded
    kind = position_type(characters + (int(ends.max()) if len(ends) else 0))
    return input_ids, starts.astype(kind) + kind(characters), ends.astype(kind) + kind(characters)


def _cut(encoded: Encoded, begin: int, end: int | None) -> Encoded:
    """Some of the tokens. Copies, so that the others do not stay in memory."""
    input_ids, starts, ends = (values[begin:end].copy() for values in encoded)
    return input_ids, starts, ends
