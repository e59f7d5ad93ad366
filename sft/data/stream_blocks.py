"""The blocks of rows in which a stream is shuffled: of one source after another, or mixed by probability.

What a block holds follows from the numbers of rows alone, so the blocks before a slot are skipped without parsing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sft.common.data_records import RawRow
from sft.data.sources.load import Chunk, Source

_MIXED_ROWS = 256
"""Least number of rows that are drawn together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Some consecutive rows of a chunk."""

    source_index: int
    chunk: Chunk
    first: int
    num_rows: int


class StreamBlock:
    """Some rows of a stream. Each is parsed only when it is needed."""

    def __init__(self, parts: Sequence[_Part], places: np.ndarray | None = None):
        """
        Args:
            parts: Its rows.
            places: Place of each row in the order given, int64 `[N]`; None if the parts have that order.
        """
        self._parts = parts
        self._starts = np.cumsum([0, *(part.num_rows for part in parts)])
        self.num_rows = int(self._starts[-1])
        self.places = np.arange(self.num_rows) if places is None else places

    def source_indices(self, rows: np.ndarray) -> np.ndarray:
        """The source of each of these rows of the block."""
        return np.asarray([part.source_index for part in self._parts])[self._part_of(rows)]

    def rows_at(self, rows: np.ndarray) -> list[RawRow]:
        """The rows with these indices in the block, in the requested order."""
        part_of_row = self._part_of(rows)
        found: dict[int, RawRow] = {}
        for number in np.unique(part_of_row).tolist():
            part, own = self._parts[number], rows[part_of_row == number]
            indices = (own - self._starts[number] + part.first).tolist()
            found.update(zip(own.tolist(), part.chunk.rows(indices), strict=True))
        return [found[row] for row in rows.tolist()]

    def _part_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


def blocks_in_turn(sources: Sequence[Source], block_rows: int) -> Iterator[StreamBlock]:
    """Blocks of at least `block_rows` rows of one source after another, pass after pass."""
    while True:
        for index, source in enumerate(sources):
            held: list[_Part] = []
            num_held = 0
            for chunk in source.chunks():
                held.append(_Part(source_index=index, chunk=chunk, first=0, num_rows=chunk.num_rows))
                num_held += chunk.num_rows
                if num_held >= block_rows:
                    yield StreamBlock(held)
                    held, num_held = [], 0
            if held:
                yield StreamBlock(held)


def mixed_blocks(
    sources: Sequence[Source], probabilities: Sequence[float], block_rows: int, *, seed: int, all_exhausted: bool
) -> Iterator[StreamBlock]:
    """Blocks of rows whose sources are drawn, each source in its own order.

    Args:
        sources: The sources.
        probabilities: Of each source.
        block_rows: Rows of a block.
        seed: Seed of the draws.
        all_exhausted: A source that is used up begins again by itself; otherwise all begin again together, when the
            first one is used up.
    """
    readers = [_Reader(index, source) for index, source in enumerate(sources)]
    number = 0
    while True:
        drawn = np.random.default_rng([seed, number, 1]).choice(
            len(sources), max(block_rows, _MIXED_ROWS), p=np.asarray(probabilities) / sum(probabilities)
        )
        number += 1
        counts = np.bincount(drawn, minlength=len(sources)).tolist()
        taken = [reader.take(count, again=all_exhausted) for reader, count in zip(readers, counts, strict=True)]
        if not all_exhausted:
            # The pass ends with the last row of the source that is used up first.
            ends = [
                int(np.flatnonzero(drawn == index)[_num_rows(parts) - 1]) + 1
                for index, (parts, reader) in enumerate(zip(taken, readers, strict=True))
                if parts and reader.is_used_up
            ]
            if ends:
                drawn = drawn[: min(ends)]
                counts = np.bincount(drawn, minlength=len(sources)).tolist()
                taken = [_first(parts, count) for parts, count in zip(taken, counts, strict=True)]
                for reader in readers:
                    reader.restart()
        places = [np.flatnonzero(drawn == index) for index in range(len(sources))]
        yield StreamBlock([part for parts in taken for part in parts], np.concatenate(places))


class _Reader:
    """The rows of one source, in order."""

    def __init__(self, index: int, source: Source):
        self._index = index
        self._source = source
        self.restart()

    def restart(self) -> None:
        """Begin again with the first row."""
        self._chunks = iter(self._source.chunks())
        self._next: _Part | None = None

    @property
    def is_used_up(self) -> bool:
        """Whether no row is left. Reads on if need be."""
        while self._next is None or not self._next.num_rows:
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._next = _Part(source_index=self._index, chunk=chunk, first=0, num_rows=chunk.num_rows)
        return False

    def take(self, count: int, *, again: bool) -> list[_Part]:
        """The next rows; fewer if the source ends, unless it begins again."""
        parts: list[_Part] = []
        while count:
            if self.is_used_up:
                if not again:
                    break
                self.restart()
                continue
            assert self._next is not None  # it is not used up
            part = replace(self._next, num_rows=min(count, self._next.num_rows))
            parts.append(part)
            count -= part.num_rows
            self._next = replace(
                self._next, first=part.first + part.num_rows, num_rows=self._next.num_rows - part.num_rows
            )
        return parts


def _num_rows(parts: Sequence[_Part]) -> int:
    return sum(part.num_rows for part in parts)


def _first(parts: Sequence[_Part], count: int) -> list[_Part]:
    """The parts of the first `count` rows."""
    kept: list[_Part] = []
    for part in parts:
        if count:
            kept.append(replace(part, num_rows=min(count, part.num_rows)))
            count -= kept[-1].num_rows
    return kept
