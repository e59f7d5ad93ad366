"""Micro-batches of one process from an endless stream of rows: a pure function of (stream, step, sizes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from sft.batching.layout import IGNORED
from sft.common.errors import DataError


class Slot(Protocol):
    """A row of a stream: its number there, and its tokens and labels, or why it has none."""

    slot: int
    input_ids: np.ndarray | None
    labels: np.ndarray | None
    dropped: Any


class MicroBatchStream(IterableDataset):
    """The micro-batches of one process, laid out, without an end.

    Slots are dealt out as `RankBatchSampler` deals out rows: the slots of an optimizer step depend on the product
    batch x accumulation x processes alone. A batch is what the collator makes of its rows, and `dropped`: the rows
    whose slots are empty. Where the data cannot be read, the last one holds nothing but `failed`: the reasons.
    """

    def __init__(
        self,
        read: Callable[[int, Callable[[np.ndarray], np.ndarray]], Iterator[Slot]],
        collate: Callable[[Sequence[Mapping[str, np.ndarray]]], dict[str, torch.Tensor]],
        micro_batch_size: int,
        *,
        rank: int,
        world_size: int,
        first_micro_batch: int = 0,
    ):
        """Args:
        read: from a slot on, the rows of the slots for which a function says so.
        collate: rows to tensors.
        micro_batch_size: slots of a micro-batch of one process.
        rank, world_size: this process among all.
        first_micro_batch: where to begin: how many of this process came before.
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
            return (slots % self._world_size == self._rank) & (turn == number)

        held: list[Slot] = []
        try:
            for row in self._read(self._first * together, is_mine):
                held.append(row)
                if len(held) == self._size:
                    yield self._batch(held)
                    held = []
        except DataError as error:
            # Raised in a worker process, it would arrive as a traceback; raised on one rank, others would wait for it.
            yield {"failed": error.problems}

    def _batch(self, slots: Sequence[Slot]) -> dict[str, Any]:
        rows = [
            {"input_ids": row.input_ids, "labels": row.labels, "place": place}
            for place, row in enumerate(slots)
            if row.dropped is None
        ]
        if not rows:
            # Every process takes every step: one token that is not trained keeps the place.
            rows = [{"input_ids": np.zeros(1, np.int32), "labels": np.full(1, IGNORED, np.int32)}]
        return {**self._collate(rows), "dropped": [row.dropped for row in slots if row.dropped is not None]}
