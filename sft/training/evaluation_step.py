"""A batch of evaluation, in smaller parts where memory runs out: the sums do not depend on how rows share batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from sft.batching.layout import FlatCollator, PaddedCollator
from sft.batching.parts import next_parts, split_rows
from sft.batching.transfer import to_device
from sft.common.errors import MemoryShortage

logger = logging.getLogger("sft.train")
Batch = Mapping[str, Any]
Result = TypeVar("Result")


class EvaluationStep:
    """Runs batches on this process's device; once one did not fit, those that follow come in smaller parts too."""

    def __init__(
        self,
        collator: FlatCollator | PaddedCollator,
        batch_size: int,
        device: torch.device,
        *,
        can_be_parted: bool = True,
    ):
        """Args:
        collator: lays the rows of a part out.
        batch_size: rows of a whole batch.
        device: of this process.
        can_be_parted: False where all processes compute a batch together, so that none can take another way.
        """
        self._can_be_parted = can_be_parted
        self._collator = collator
        self._batch_size = batch_size
        self._device = device
        self.parts = 1
        self.shortages = 0
        """How often memory ran out, and the parts became smaller."""

    def run(self, batch: Batch, compute: Callable[[Batch], Result]) -> list[tuple[Batch, Result]]:
        """What `compute` makes of a batch, part by part: each part with its result.

        Raises:
            MemoryShortage: if even a single row does not fit.
        """
        while True:
            try:
                return [(part, compute(part)) for part in self._parts_of(batch)]
            except torch.OutOfMemoryError:
                pass  # what the traceback refers to is let go only behind this block
            self._make_parts_smaller(batch)

    def _parts_of(self, batch: Batch) -> Iterator[Batch]:
        if self.parts == 1:
            yield to_device(batch, self._device)
            return
        for rows in split_rows(batch["rows"], self._batch_size, self.parts):
            yield to_device(self._collator(rows), self._device)

    def _make_parts_smaller(self, batch: Batch) -> None:
        longest = max(len(row["input_ids"]) for row in batch["rows"])
        if not self._can_be_parted:
            raise MemoryShortage(
                f"Out of memory on {self._device} in evaluation, and with fsdp it cannot go on in smaller parts. "
                "Checkpoints are untouched: choose a smaller per_device_eval_batch_size; the result stays the same."
            )
        if self.parts >= self._batch_size or len(batch["rows"]) == 1:
            raise MemoryShortage(
                f"Out of memory on {self._device} in evaluation, with a single row (of up to {longest:,} tokens) at a "
                "time. Checkpoints are untouched. Choose a smaller max_seq_length."
            )
        self.shortages += 1
        self.parts = next_parts(self._batch_size, self.parts)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.info(
            "Out of memory in evaluation: it goes on with %d rows at a time instead of %d.",
            self._batch_size // self.parts,
            self._batch_size,
        )
