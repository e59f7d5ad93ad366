"""Rows that are prepared while they are read and stored nowhere.

Every row read has a slot: its number in an endless sequence of passes over the data, in which each block of rows is
shuffled by a seed. Which rows a step trains on follows from slot numbers alone, however many processes share the work;
a row that cannot be used leaves its slot empty, and one that is split, or that `row_function` turns into several, holds
them all in its slot. So nothing needs to know what the rows before a slot become: to resume there, they are skipped
without parsing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sft.common.data_records import DroppedRow, RawRow
from sft.data.preparation import SourcePreparation
from sft.data.prepared import Split
from sft.data.remarks import Remark
from sft.data.rows import RowPreparer
from sft.data.sources.load import Chunk, Source
from sft.prompting.messages import RowRefused

_ROWS_PER_CALL = 64
"""Rows that are prepared together: the tokenizer processes several at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedRow:
    """A slot, with what the row in it becomes: usually one row, or a reason why there is none."""

    slot: int
    rows: tuple[Mapping[str, np.ndarray], ...] = ()
    """`input_ids` and `labels`, int32 `[T]` each."""
    remarks: tuple[Remark, ...] = ()
    dropped: tuple[DroppedRow, ...] = ()


def open_stream(preparation: SourcePreparation, train: Split, *, seed: int) -> "RowStream":
    """The stream of the training rows.

    Args:
        preparation: Prepares rows.
        train: The training sources, with the formats chosen by their first rows.
        seed: Seed of the order.
    """
    preparers = [
        preparation.preparer(source, prepared.record_format)
        for source, prepared in zip(train.sources, train.prepared, strict=True)
    ]
    block_rows = 1 if preparation.config.order == "given" else preparation.config.shuffle_block_rows
    return RowStream(train.sources, preparers, seed=seed, block_rows=block_rows)


class RowStream:
    """The rows of all sources, pass after pass."""

    def __init__(self, sources: Sequence[Source], preparers: Sequence[RowPreparer], *, seed: int, block_rows: int):
        """
        Args:
            sources: Read one after another in each pass.
            preparers: The preparer of each source.
            seed: Seed of the order within blocks.
            block_rows: Rows that are held in memory and shuffled together; 1 keeps the order of the files.
        """
        self._sources = sources
        self._preparers = preparers
        self._seed = seed
        self._block_rows = block_rows

    def read(self, start: int, is_mine: Callable[[np.ndarray], np.ndarray]) -> Iterator[StreamedRow]:
        """The rows in the chosen slots from `start` on, in order. Never ends.

        Args:
            start: The first slot.
            is_mine: Chooses slots to prepare: int64 `[N]` to bool `[N]`.

        Raises:
            DataError: If a source cannot be read.
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
            for first in range(0, len(by_slot), _ROWS_PER_CALL):
                rows = by_slot[first : first + _ROWS_PER_CALL]
                yield from self._prepare(block, rows, slot_of_row[rows])

    def _blocks(self) -> Iterator[tuple[int, "_ShuffleBlock"]]:
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
                        yield number, _ShuffleBlock(source_index, held)
                        number, held, num_held = number + 1, [], 0
                if held:
                    yield number, _ShuffleBlock(source_index, held)
                    number += 1

    def _prepare(self, block: "_ShuffleBlock", rows: np.ndarray, slots: np.ndarray) -> Iterator[StreamedRow]:
        preparer = self._preparers[block.source_index]
        made = [preparer.made(raw) for raw in block.rows_at(rows)]
        outcomes = iter(preparer.prepare([row for of_slot in made for row in of_slot]))
        for slot, of_slot in zip(slots.tolist(), made, strict=True):
            used: list[Mapping[str, np.ndarray]] = []
            remarks: list[Remark] = []
            dropped: list[DroppedRow] = []
            for row, outcome in zip(of_slot, outcomes, strict=False):
                try:
                    if isinstance(outcome, RowRefused):
                        raise outcome
                    conversation, text, tokens = outcome
                    pieces, changes = preparer.pieces(text, tokens)
                except RowRefused as refusal:
                    dropped.append(DroppedRow(source=row.source, problem=refusal.problem))
                    continue
                found = preparer.remarks(conversation, text, split_tokens=tokens.split_tokens, changes=changes)
                remarks += [(row.source, kind, tuple(names)) for kind, names in found.items() if names]
                used += [{"input_ids": piece.input_ids, "labels": piece.labels} for piece in pieces]
            yield StreamedRow(slot=slot, rows=tuple(used), remarks=tuple(remarks), dropped=tuple(dropped))


class _ShuffleBlock:
    """Consecutive chunks of a source. Each row is parsed only when it is needed."""

    def __init__(self, source_index: int, chunks: Sequence[Chunk]):
        self.source_index = source_index
        self._chunks = chunks
        self._starts = np.cumsum([0, *(chunk.num_rows for chunk in chunks)])
        self.num_rows = int(self._starts[-1])

    def rows_at(self, rows: np.ndarray) -> list[RawRow]:
        """The rows with these indices in the block, in the requested order."""
        chunk_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        found: dict[int, RawRow] = {}
        for number in np.unique(chunk_of_row).tolist():
            own = rows[chunk_of_row == number]
            indices = (own - self._starts[number]).tolist()
            found.update(zip(own.tolist(), self._chunks[number].rows(indices), strict=True))
        return [found[row] for row in rows.tolist()]
