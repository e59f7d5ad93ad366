"""Rows prepared while they are read, and stored nowhere: for data that should not be kept.

Every row that is read has a slot: its number in an endless sequence, in which pass follows pass and each block of rows
is shuffled by a seed. Which rows a step trains on follows from its slots alone, however many processes share the work;
a row that cannot be used leaves its slot empty. To go on from a slot, what lies before it is passed over unparsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sft.common.data_records import DroppedRow, RawRow
from sft.data.rows import RowPreparer
from sft.data.sources.load import Chunk, Source
from sft.prompting.messages import RowRefused

_ROWS_AT_ONCE = 64
"""Rows that are prepared together: the tokenizer works on several at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedRow:
    """A slot, and the row in it or the reason why it is empty."""

    slot: int
    input_ids: np.ndarray | None = None
    """int32 `[T]`, and so `labels`."""
    labels: np.ndarray | None = None
    dropped: DroppedRow | None = None


class RowStream:
    """The rows of all sources, pass after pass."""

    def __init__(self, sources: Sequence[Source], preparers: Sequence[RowPreparer], *, seed: int, block_rows: int):
        """Args:
        sources: read one after another in each pass.
        preparers: of each source.
        seed: of the order within blocks.
        block_rows: rows that are held and shuffled at a time; 1 leaves the order as it is.
        """
        self._sources = sources
        self._preparers = preparers
        self._seed = seed
        self._block_rows = block_rows

    def read(self, start: int, is_mine: Callable[[np.ndarray], np.ndarray]) -> Iterator[StreamedRow]:
        """The rows in slots from `start` on that are asked for, in order, without an end.

        Args:
            start: the first slot.
            is_mine: which of these slots to prepare, bool for int64, `[N]` both.

        Raises:
            DataError: if a source cannot be read.
        """
        slot = 0
        for number, block in self._blocks():
            slots = slot + np.arange(block.num_rows)
            slot += block.num_rows
            if slot <= start:
                continue
            # Row of the block -> its slot.
            order = np.random.default_rng([self._seed, number]).permutation(block.num_rows)
            slot_of_row = np.empty_like(slots)
            slot_of_row[order if self._block_rows > 1 else np.arange(block.num_rows)] = slots
            wanted = np.flatnonzero((slot_of_row >= start) & is_mine(slot_of_row))
            by_slot = wanted[np.argsort(slot_of_row[wanted])]
            for first in range(0, len(by_slot), _ROWS_AT_ONCE):
                rows = by_slot[first : first + _ROWS_AT_ONCE]
                yield from self._prepared(block, rows, slot_of_row[rows])

    def _blocks(self) -> Iterator[tuple[int, "_Block"]]:
        """Blocks of rows, numbered through all passes."""
        number = 0
        while True:
            for source_index, source in enumerate(self._sources):
                held: list[Chunk] = []
                num_held = 0
                for chunk in source.chunks():
                    held.append(chunk)
                    num_held += chunk.num_rows
                    if num_held >= self._block_rows:
                        yield number, _Block(source_index, held)
                        number, held, num_held = number + 1, [], 0
                if held:
                    yield number, _Block(source_index, held)
                    number += 1

    def _prepared(self, block: "_Block", rows: np.ndarray, slots: np.ndarray) -> Iterator[StreamedRow]:
        raw = block.rows_at(rows)
        outcomes = self._preparers[block.source_index].prepare(raw)
        for slot, row, outcome in zip(slots.tolist(), raw, outcomes, strict=True):
            if isinstance(outcome, RowRefused):
                yield StreamedRow(slot=slot, dropped=DroppedRow(source=row.source, problem=outcome.problem))
            else:
                tokens = outcome[2]
                yield StreamedRow(slot=slot, input_ids=tokens.input_ids, labels=tokens.labels)


class _Block:
    """Consecutive chunks of a source, whose rows are parsed one by one as they are wanted."""

    def __init__(self, source_index: int, chunks: Sequence[Chunk]):
        self.source_index = source_index
        self._chunks = chunks
        self._starts = np.cumsum([0, *(chunk.num_rows for chunk in chunks)])
        self.num_rows = int(self._starts[-1])

    def rows_at(self, rows: np.ndarray) -> list[RawRow]:
        """The rows at these places of the block, in the order in which they are asked for."""
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[int, RawRow] = {}
        for part in np.unique(parts).tolist():
            own = rows[parts == part]
            places = (own - self._starts[part]).tolist()
            found.update(zip(own.tolist(), self._chunks[part].rows(places), strict=True))
        return [found[row] for row in rows.tolist()]
