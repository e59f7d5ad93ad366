"""The gradient of one optimizer step. If memory runs out, the step is retried in smaller chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from sft.batching.chunks import next_num_chunks, split_rows
from sft.batching.layout import FlatCollator, PaddedCollator
from sft.batching.transfer import to_device
from sft.common.device_errors import is_out_of_memory
from sft.common.errors import MemoryShortage
from sft.common.run_records import DistributedContext
from sft.modeling.gradient_sum import sum_gradients
from sft.modeling.random_state import RandomState
from sft.processes.agreement import open_cpu_group
from sft.training.bad_steps import BadSteps

logger = logging.getLogger("sft.train")
Batch = Mapping[str, Any]


class StepGradient:
    """Accumulates the gradient of a step and sums it over processes.

    If a micro-batch does not fit on the device of any process, all processes discard the step's gradient and run the
    same rows again in smaller chunks, before any weight has changed. The result is that of a smaller micro-batch size
    with more accumulation. The following steps use the smaller chunks as well.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        collator: FlatCollator | PaddedCollator,
        micro_batch_size: int,
        context: DistributedContext,
        *,
        num_chunks: int = 1,
        bad_steps: BadSteps | None = None,
        on_retry: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            weights: the trainable weights.
            collator: collates the rows of a chunk.
            micro_batch_size: rows, or packs, of a full micro-batch.
            context: this process; with several processes, a process group must be open.
            num_chunks: chunks per micro-batch at the start.
            bad_steps: checks the gradient of each step.
            on_retry: called before a step is retried.
        """
        self._weights = list(weights)
        self._collator = collator
        self._micro_batch_size = micro_batch_size
        self._context = context
        # Agreement is reached in main memory, without synchronizing with the GPU.
        self._group = open_cpu_group(context)
        self._bad_steps = bad_steps
        self._on_retry = on_retry
        self.num_chunks = num_chunks
        self.shortages = 0
        """How often memory ran out and the number of chunks was raised."""
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []
        self._is_out_of_memory = False
        self._random_state: RandomState | None = None

    def add(self, batch: Batch, run: Callable[[Batch], torch.Tensor], *, is_last: bool, step: int) -> torch.Tensor:
        """Adds the gradient of a micro-batch; with the last one of the step, sums the gradient over processes.

        Args:
            batch: the collator's output, on the device.
            run: forward and backward pass of a batch; returns its share of the step's loss.
            is_last: whether this is the last micro-batch of the step.
            step: number of the step, for the log.

        Returns:
            Float scalar: for the last micro-batch this process's share of the step's loss, else zero.

        Raises:
            MemoryShortage: on all processes, if the chunks cannot be smaller.
        """
        if not self._batches:
            self._random_state = RandomState.capture(self._context.device)
        self._batches.append(batch)
        if not self._is_out_of_memory:
            self._try(batch, run)
        if not is_last:
            return torch.zeros((), device=batch["targets"].device)
        has_gradient = self._agree()
        while has_gradient is None:
            self._split_further(step)
            for each in self._batches:
                self._try(each, run)
            has_gradient = self._agree()
        loss = torch.stack(self._losses).sum()
        if self._bad_steps is not None:
            self._bad_steps.mark(loss, self._weights)
        if self._context.world_size > 1:
            sum_gradients(self._weights, has_gradient)
        if self._bad_steps is not None:
            loss = self._bad_steps.check(loss, self._weights, self._batches)
        self._batches, self._losses = [], []
        return loss

    def _try(self, batch: Batch, run: Callable[[Batch], torch.Tensor]) -> None:
        """Runs a micro-batch, split into chunks if necessary; sets `_is_out_of_memory` if memory runs out."""
        if self._is_out_of_memory:
            return
        try:
            for chunk in self._chunks_of(batch):
                self._losses.append(run(chunk))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # The traceback's tensors are only freed after this block.
            self._is_out_of_memory = True

    def _chunks_of(self, batch: Batch) -> Iterable[Batch]:
        if self.num_chunks == 1:
            return [batch]
        device = batch["targets"].device
        collator = self._collator.for_chunks(self.num_chunks)
        split = split_rows(batch["rows"], self._micro_batch_size, self.num_chunks)
        return (to_device(collator(rows), device) for rows in split)

    def _agree(self) -> list[bool] | None:
        """For each weight, whether any process has a gradient; None if memory ran out on any process.

        Raises:
            MemoryShortage: if memory ran out, and none of those processes has a chunk that can be split.
        """
        largest = max(
            len(rows)
            for batch in self._batches
            for rows in split_rows(batch["rows"], self._micro_batch_size, self.num_chunks)
        )
        can_split = self._is_out_of_memory and largest > 1
        own = [self._is_out_of_memory, can_split, *(weight.grad is not None for weight in self._weights)]
        agreed = torch.tensor(own, dtype=torch.uint8)
        if self._group is not None:
            distributed.all_reduce(agreed, op=distributed.ReduceOp.MAX, group=self._group)
        is_out_of_memory, can_split, *has_gradient = agreed.tolist()
        if is_out_of_memory and not can_split:
            longest = max(len(row["input_ids"]) for batch in self._batches for row in batch["rows"])
            raise MemoryShortage(
                f"Out of memory on {self._context.device} with a single row (of up to {longest:,} tokens). Checkpoints "
                "are intact: resume with resume_from_checkpoint: auto and gradient_checkpointing: true, or start a "
                "new run with a smaller max_seq_length or lora_config. --dry_run shows what uses the memory."
            )
        return None if is_out_of_memory else [bool(has) for has in has_gradient]

    def _split_further(self, step: int) -> None:
        """Discards the step's gradient and losses, and raises the number of chunks."""
        self.shortages += 1
        self.num_chunks = next_num_chunks(self._micro_batch_size, self.num_chunks)
        for weight in self._weights:
            weight.grad = None
        self._losses, self._is_out_of_memory = [], False
        self._on_retry()
        if self._context.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self._random_state is not None:
            self._random_state.restore()  # dropout draws the same numbers
        logger.info(
            "Out of memory at step %d: retrying it with %s at a time on each device, which later steps also use. "
            "Each step still trains on the same rows.",
            step,
            self._chunk_size_text(),
        )

    def _chunk_size_text(self) -> str:
        """The size of a chunk: `4 of 8`, rows or packs."""
        size, chunks = self._micro_batch_size, self.num_chunks
        return f"{size // chunks} of {size}" if chunks <= size else f"1/{chunks // size} of a pack"
