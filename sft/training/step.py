"""The gradient of one optimizer step. If memory runs out, the step is retried in smaller chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import distributed, nn

from sft.batching.chunks import split_rows
from sft.batching.layout import FlatCollator, PaddedCollator, Row
from sft.batching.transfer import to_device
from sft.common.device_errors import is_out_of_memory
from sft.common.errors import MemoryShortage
from sft.common.run_records import DistributedContext
from sft.modeling.data_parallel import Failure, GradientSum, MicroBatchLoss
from sft.modeling.random_state import RandomState
from sft.training.bad_steps import BadSteps
from sft.training.chunk_count import ChunkCount

logger = logging.getLogger("sft.train")
Batch = Mapping[str, Any]
Run = Callable[[nn.Module, Batch], torch.Tensor]


class StepGradient:
    """Accumulates the gradient of a step, which DDP sums over processes during the last backward pass.

    If a micro-batch does not fit on the device of any process, all processes discard the step's gradient and run the
    same rows again in smaller chunks, before any weight has changed. The result is that of a smaller micro-batch size
    with more accumulation. The following steps use the smaller chunks as well (see `ChunkCount` for how many).
    """

    def __init__(
        self,
        loss: MicroBatchLoss,
        collator: FlatCollator | PaddedCollator,
        chunks: ChunkCount,
        context: DistributedContext,
        *,
        gradient_sum: GradientSum | None = None,
        bad_steps: BadSteps | None = None,
        on_retry: Callable[[], None] = lambda: None,
        starts_with_zeros: bool = False,
    ):
        """
        Args:
            loss: the model and its loss.
            collator: collates the rows of a chunk.
            chunks: how a micro-batch is split; changed when memory runs out.
            context: this process.
            gradient_sum: sums the gradient over processes; None for a single one.
            bad_steps: checks the gradient of each step.
            on_retry: called before a step is retried.
            starts_with_zeros: begin a step of several passes with gradients of zeros, to which all passes add. A
                gradient that a CUDA graph writes is overwritten when the graph is replayed, so that of the first pass
                must not be kept as it is.
        """
        self._loss = loss
        self._weights = [weight for weight in loss.parameters() if weight.requires_grad]
        self._collator = collator
        self._context = context
        self._sum = gradient_sum
        self._bad_steps = bad_steps
        self._on_retry = on_retry
        self._starts_with_zeros = starts_with_zeros
        self.chunks = chunks
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []
        self._is_out_of_memory = False
        self._random_state: RandomState | None = None

    @property
    def module(self) -> nn.Module:
        """Computes the loss of a micro-batch; what `run` of `add` is called with."""
        return self._loss if self._sum is None else self._sum.module

    def add(self, batch: Batch, run: Run, *, is_last: bool, step: int) -> torch.Tensor:
        """Adds the gradient of a micro-batch; with the last one of the step, the gradient is summed over processes.

        Args:
            batch: the collator's output, on the device.
            run: forward and backward pass of a batch with a module; returns its share of the step's loss.
            is_last: whether this is the last micro-batch of the step.
            step: number of the step, for the log.

        Returns:
            Float scalar: for the last micro-batch this process's share of the step's loss, else zero.

        Raises:
            MemoryShortage: on all processes, if the chunks cannot be smaller.
        """
        if not self._batches:
            self.chunks.begin_step(step)
            self._random_state = RandomState.capture(self._context.device)
            self._begin(accumulates=not is_last)
        self._batches.append(batch)
        self._try(batch, run, reduces=is_last)
        if not is_last:
            return torch.zeros((), device=batch["targets"].device)
        while (failure := self._end()) != Failure.NONE:
            self._restart(failure, step)
            for each in self._batches:
                self._try(each, run, reduces=each is batch)
        loss = torch.stack(self._losses).sum()
        if self._bad_steps is not None:
            if self._sum is None:
                self._bad_steps.mark(loss, self._weights)
            loss = self._bad_steps.check(loss, self._weights, self._batches)
        self._batches, self._losses = [], []
        return loss

    def _begin(self, *, accumulates: bool) -> None:
        if self._sum is not None:
            self._sum.begin_step(accumulates=accumulates or self.chunks.num_chunks > 1)
        elif self._starts_with_zeros and (accumulates or self.chunks.num_chunks > 1):
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight)

    def _try(self, batch: Batch, run: Run, *, reduces: bool) -> None:
        """Runs a micro-batch, split into chunks if necessary; sets `_is_out_of_memory` if memory runs out.

        Args:
            batch: the micro-batch.
            run: see `add`.
            reduces: whether the gradient is summed over processes during the backward pass of its last chunk.
        """
        if self._is_out_of_memory:
            return
        chunks = self._chunks_of(batch)
        try:
            for number, chunk in enumerate(chunks, start=1):
                is_reduced = reduces and number == len(chunks)
                with nullcontext() if self._sum is None or is_reduced else self._sum.without_reduction():
                    self._losses.append(run(self.module, chunk()))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            # The traceback's tensors are only freed after this block.
            self._is_out_of_memory = True

    def _chunks_of(self, batch: Batch) -> Sequence[Callable[[], Batch]]:
        """The chunks of a micro-batch, each collated when it is called."""
        if self.chunks.num_chunks == 1:
            return [lambda: batch]
        device = batch["targets"].device
        collator = self._collator.for_chunks(self.chunks.num_chunks)
        split = self._split(batch)
        return [partial(lambda rows: to_device(collator(rows), device), rows) for rows in split]

    def _split(self, batch: Batch) -> list[list[Row]]:
        return split_rows(batch["rows"], self.chunks.micro_batch_size, self.chunks.num_chunks)

    def _end(self) -> Failure:
        """Waits for the sum of the gradient; returns why all processes must retry the step, if they must.

        Raises:
            MemoryShortage: if memory ran out, and none of those processes has a chunk that can be split.
        """
        failure = Failure.OUT_OF_MEMORY if self._is_out_of_memory else Failure.NONE
        if failure != Failure.NONE and self._context.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self._sum is not None:
            failure = self._sum.end_step(failure)
        if failure == Failure.OUT_OF_MEMORY and not self._can_split():
            longest = max(len(row["input_ids"]) for batch in self._batches for row in batch["rows"])
            raise MemoryShortage(
                f"Out of memory on {self._context.device} with a single row (of up to {longest:,} tokens). Checkpoints "
                "are intact: resume with resume_from_checkpoint: auto and gradient_checkpointing: true, or start a "
                "new run with a smaller max_seq_length or lora_config. --dry_run shows what uses the memory."
            )
        return failure

    def _can_split(self) -> bool:
        """Whether any process that ran out of memory has a chunk of several rows."""
        largest = max(len(rows) for batch in self._batches for rows in self._split(batch))
        can_split = torch.tensor(int(self._is_out_of_memory and largest > 1))
        if self._sum is not None:
            distributed.all_reduce(can_split, distributed.ReduceOp.MAX, group=self._sum.cpu_group)
        return bool(can_split)

    def _restart(self, failure: Failure, step: int) -> None:
        """Discards the step's gradient and losses; after a shortage of memory, raises the number of chunks."""
        self._losses, self._is_out_of_memory = [], False
        self._on_retry()
        if self._sum is not None:
            self._sum.rewrap(failure)
        for weight in self._weights:
            weight.grad = None
        if self._context.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if self._random_state is not None:
            self._random_state.restore()  # dropout draws the same numbers
        if failure == Failure.OUT_OF_MEMORY:
            self.chunks.raise_after_shortage(step)
            again = self.chunks.next_attempt
            logger.info(
                "Out of memory at step %d: retrying it with %s at a time on each device, which later steps also use%s. "
                "Each step still trains on the same rows.",
                step,
                self._chunk_size_text(),
                f", until step {again} tries whole micro-batches again" if again is not None else "",
            )
        else:
            logger.info(
                "Step %d: some trainable weights get no gradient, so DDP searches for such weights from now on "
                "(ddp_find_unused_parameters: true does so from the start).",
                step,
            )
        self._begin(accumulates=len(self._batches) > 1)

    def _chunk_size_text(self) -> str:
        """The size of a chunk: `4 of 8`, rows or packs."""
        size, chunks = self.chunks.micro_batch_size, self.chunks.num_chunks
        return f"{size // chunks} of {size}" if chunks <= size else f"1/{chunks // size} of a pack"
