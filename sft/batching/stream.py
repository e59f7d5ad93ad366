"""Micro-batches of one process from an endless stream of rows: a pure function of (stream, step, sizes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from sft.batching.layout import Row
from sft.common.data_records import IGNORED
from sft.common.errors import DataError


class Slot(Protocol):
    """A position in a stream, with the rows in it, usually one, and the reasons why others are not."""

    @property
    def slot(self) -> int:
        """Its number, from 0."""

    @property
    def rows(self) -> Sequence[Mapping[str, np.ndarray]]:
        """`input_ids` and `labels` of each, and `weights` if it has any."""

    @property
    def remarks(self) -> Sequence[Any]:
        """What is counted of its rows."""

    @property
    def dropped(self) -> Sequence[Any]:
        """What it has no rows of, and why."""


class MicroBatchStream(IterableDataset[dict[str, Any]]):
    """The endless sequence of collated micro-batches of one process.

    Slots are assigned as `RankBatchSampler` assigns rows: the slots of an optimizer step depend on the product
    batch x accumulation x processes alone. A batch is what the collator returns, `dropped`: the rows that its slots
    lack, `remarks` on the others, and `made`: how many rows it has, dropped ones included, beyond one for each slot. If
    the data cannot be read, the last batch contains nothing but `failed`: the reasons.
    """

    def __init__(
        self,
        read: Callable[[int, Callable[[np.ndarray], np.ndarray]], Iterator[Slot]],
        collate: Callable[[Sequence[Row]], dict[str, Any]],
        micro_batch_size: int,
        *,
        rank: int,
        world_size: int,
        first_micro_batch: int = 0,
    ):
        """
        Args:
            read: yields, from a slot on, the slots that a predicate selects.
            collate: rows to tensors.
            micro_batch_size: slots of a micro-batch of one process.
            rank, world_size: this process among all.
            first_micro_batch: where to start: the number of this process's micro-batches before it.
        """
        self._read = read
        self._collate = collate
        self._size = micro_batch_size
        self._rank = rank
        self._world_size = world_size
        self._first = first_micro_batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        together = self._size * self._world_size

        def is_mine(slots: np.ndarray) -> np.ndarray:
            # A loader takes one batch from each of its workers in turn.
            turn = (slots // together - self._first) % count
            mine: np.ndarray = (slots % self._world_size == self._rank) & (turn == number)
            return mine

        collected: list[Slot] = []
        try:
            for row in self._read(self._first * together, is_mine):
                collected.append(row)
                if len(collected) == self._size:
                    yield self._batch(collected)
                    collected = []
        except DataError as error:
            # Raised in a worker process, it would arrive as a traceback; raised on one rank, the others would wait.
            yield {"failed": error.problems}

    def _batch(self, slots: Sequence[Slot]) -> dict[str, Any]:
        # The rows of a slot share its index: if the device runs out of memory, they are divided like those of a pack.
        rows: list[Row] = [{**row, "batch_index": index} for index, slot in enumerate(slots) for row in slot.rows]
        dropped = [row for slot in slots for row in slot.dropped]
        made = len(rows) + len(dropped) - len(slots)
        if not rows:
            # Every process takes part in every step, here with one token that is not trained.
            rows = [{"input_ids": np.zeros(1, np.int32), "labels": np.full(1, IGNORED, np.int32)}]
        remarks = [remark for slot in slots for remark in slot.remarks]
        return {**self._collate(rows), "dropped": dropped, "remarks": remarks, "made": made}
