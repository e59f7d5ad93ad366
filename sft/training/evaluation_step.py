"""One evaluation batch, split into chunks when memory runs out. The sums of the metrics do not depend on the split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from sft.batching.chunks import next_num_chunks, split_rows
from sft.batching.layout import FlatCollator, PaddedCollator
from sft.batching.transfer import to_device
from sft.common.device_errors import is_out_of_memory
from sft.common.errors import MemoryShortage

logger = logging.getLogger("sft.train")
Batch = Mapping[str, Any]
Result = TypeVar("Result")
EVALUATION = "evaluation"


class EvaluationStep:
    """Runs batches on this process's device. Once a batch did not fit, the following ones are split as well."""

    def __init__(
        self,
        collator: FlatCollator | PaddedCollator,
        batch_size: int,
        device: torch.device,
        *,
        can_split: bool = True,
        activity: str = EVALUATION,
    ):
        """
        Args:
            collator: collates the rows of a chunk.
            batch_size: rows of a full batch.
            device: this process's device.
            can_split: False if all processes compute a batch together, so that none can split it alone.
            activity: what the batches are computed for, for messages.
        """
        self._activity = activity
        self._can_split = can_split
        self._collator = collator
        self._batch_size = batch_size
        self._device = device
        self.num_chunks = 1
        self.shortages = 0
        """How often memory ran out and the number of chunks was raised."""

    def run(self, batch: Batch, compute: Callable[[Batch], Result]) -> list[tuple[Batch, Result]]:
        """Calls `compute` on each chunk of a batch; returns each chunk with its result.

        Raises:
            MemoryShortage: if even a single row does not fit.
        """
        while True:
            try:
                return [(chunk, compute(chunk)) for chunk in self._chunks_of(batch)]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                # The traceback's tensors are only freed after this block.
            self._split_further(batch)

    def _chunks_of(self, batch: Batch) -> Iterator[Batch]:
        if self.num_chunks == 1:
            yield to_device(batch, self._device)
            return
        for rows in split_rows(batch["rows"], self._batch_size, self.num_chunks):
            yield to_device(self._collator(rows), self._device)

    def _split_further(self, batch: Batch) -> None:
        longest = max(len(row["input_ids"]) for row in batch["rows"])
        size = f"per_device_{'eval' if self._activity == EVALUATION else 'train'}_batch_size"
        if not self._can_split:
            raise MemoryShortage(
                f"Out of memory on {self._device} during {self._activity}, and with fsdp a batch cannot be split. "
                f"Checkpoints are intact: choose a smaller {size}; the metrics stay the same."
            )
        if self.num_chunks >= self._batch_size or len(batch["rows"]) == 1:
            raise MemoryShortage(
                f"Out of memory on {self._device} during {self._activity}, with a single row (of up to {longest:,} "
                "tokens). "
                "Checkpoints are intact. Choose a smaller max_seq_length."
            )
        self.shortages += 1
        self.num_chunks = next_num_chunks(self._batch_size, self.num_chunks)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logger.info(
            "Out of memory during %s: continuing with batches of %d rows instead of %d.",
            self._activity,
            self._batch_size // self.num_chunks,
            self._batch_size,
        )
