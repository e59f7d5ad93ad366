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

from sft.common.data_records import DroppedRow
from sft.data.preparation import SourcePreparation
from sft.data.prepared import Split
from sft.data.remarks import Remark
from sft.data.rows import RowPreparer
from sft.data.sources.load import Source
from sft.data.stream_blocks import StreamBlock, blocks_in_turn, mixed_blocks
from sft.prompting.messages import RowRefused

_ROWS_PER_CALL = 64
"""Rows that are prepared together: the tokenizer processes several at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamedRow:
    """A slot, with what the row in it becomes: usually one row, or a reason why there is none."""

    slot: int
    rows: tuple[Mapping[str, np.ndarray], ...] = ()
    """`input_ids` and `labels`, int32 `[T]` each, and `weights`, float32 `[T]`, if it has any."""
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
    config = preparation.config
    return RowStream(
        train.sources,
        preparers,
        seed=seed,
        block_rows=1 if config.order == "given" else config.shuffle_block_rows,
        all_exhausted=config.datasets_stop == "all_exhausted",
    )


class RowStream:
    """The rows of all sources, pass after pass."""

    def __init__(
        self,
        sources: Sequence[Source],
        preparers: Sequence[RowPreparer],
        *,
        seed: int,
        block_rows: int,
        all_exhausted: bool = False,
    ):
        """
        Args:
            sources: Read one after another in each pass, or mixed, if they have probabilities.
            preparers: The preparer of each source.
            seed: Seed of the order within blocks, and of the mixture.
            block_rows: Rows that are held in memory and shuffled together; 1 keeps the order of the files.
            all_exhausted: See `mixed_blocks`.
        """
        probabilities = [source.probability for source in sources if source.probability is not None]
        self._probabilities = probabilities or None
        self._all_exhausted = all_exhausted
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
        for number, block in enumerate(self._blocks()):
            slots = slot + np.arange(block.num_rows)
            slot += block.num_rows
            if slot <= start:
                continue
            # Row of the block -> its slot.
            order = np.random.default_rng([self._seed, number]).permutation(block.num_rows)
            slot_of_row = np.empty_like(slots)
            if self._block_rows > 1:
                slot_of_row[order] = slots
            else:
                slot_of_row = slots[block.places]
            wanted = np.flatnonzero((slot_of_row >= start) & is_mine(slot_of_row))
            by_slot = wanted[np.argsort(slot_of_row[wanted])]
            for first in range(0, len(by_slot), _ROWS_PER_CALL):
                rows = by_slot[first : first + _ROWS_PER_CALL]
                yield from self._prepare(block, rows, slot_of_row[rows])

    def _blocks(self) -> Iterator[StreamBlock]:
        """All blocks, pass after pass."""
        if self._probabilities is None:
            return blocks_in_turn(self._sources, self._block_rows)
        return mixed_blocks(
            self._sources,
            self._probabilities,
            self._block_rows,
            seed=self._seed,
            all_exhausted=self._all_exhausted,
        )

    def _prepare(self, block: StreamBlock, rows: np.ndarray, slots: np.ndarray) -> list[StreamedRow]:
        """What becomes of rows of a block, in the order of their slots."""
        sources = block.source_indices(rows)
        found: list[StreamedRow] = []
        for index in np.unique(sources).tolist():
            is_own = sources == index
            found += self._prepare_rows(self._preparers[index], block, rows[is_own], slots[is_own])
        return sorted(found, key=lambda row: row.slot)

    def _prepare_rows(
        self, preparer: RowPreparer, block: StreamBlock, rows: np.ndarray, slots: np.ndarray
    ) -> Iterator[StreamedRow]:
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
                used += [piece.arrays() for piece in pieces]
            yield StreamedRow(slot=slot, rows=tuple(used), remarks=tuple(remarks), dropped=tuple(dropped))
