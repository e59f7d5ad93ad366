"""One optimizer step's gradient: over micro-batches and processes, and in smaller parts where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from sft.batching.layout import FlatCollator, PaddedCollator
from sft.batching.parts import next_parts, split_rows
from sft.batching.transfer import to_device
from sft.common.errors import MemoryShortage
from sft.common.run_records import DistributedContext
from sft.modeling.gradient_sum import sum_gradients
from sft.modeling.random_state import RandomState
from sft.training.bad_steps import BadSteps

logger = logging.getLogger("sft.train")
Batch = Mapping[str, Any]


class StepGradient:
    """Adds up the gradient of a step, whatever the number of processes and the memory that there is.

    Should the device of any process not hold a micro-batch, all of them drop what they have of the step's gradient and
    do the same rows again in smaller parts, before any weight has changed: as if the micro-batch size had been smaller,
    and the accumulation longer, from the start. It stays smaller for the steps that follow.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        collator: FlatCollator | PaddedCollator,
        micro_batch_size: int,
        context: DistributedContext,
        *,
        parts: int = 1,
        bad_steps: BadSteps | None = None,
        on_again: Callable[[], None] = lambda: None,
    ):
        """Args:
        weights: those that are trained.
        collator: lays the rows of a part out.
        micro_batch_size: rows, or packs, of a whole micro-batch.
        context: this process among all. Where there are several, a process group must be open.
        parts: to begin with.
        bad_steps: looks at the gradient of each step.
        on_again: is called before a step is done again.
        """
        self._weights = list(weights)
        self._collator = collator
        self._micro_batch_size = micro_batch_size
        self._context = context
        self._group = None
        if context.world_size > 1:
            # What is agreed on stands in main memory: no GPU is waited for.
            self._group = distributed.new_group(backend="gloo")
        self._bad_steps = bad_steps
        self._on_again = on_again
        self.parts = parts
        self.shortages = 0
        """How often memory ran out, and the parts became smaller."""
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []
        self._is_short = False
        self._random_state: RandomState | None = None

    def add(self, batch: Batch, run: Callable[[Batch], torch.Tensor], *, is_last: bool, step: int) -> torch.Tensor:
        """Adds the gradient of a micro-batch; with the last one of the step, that of all processes.

        Args:
            batch: as the collator made it, on the device.
            run: forward and backward pass of such a batch; gives its part of the step's loss.
            is_last: whether it is the last one of the step.
            step: number of the step, for the log.

        Returns:
            Zero, and with the last micro-batch the loss of this process's part of the step: float scalar.

        Raises:
            MemoryShortage: on all processes, if the parts cannot be smaller.
        """
        if not self._batches:
            self._random_state = RandomState.capture(self._context.device)
        self._batches.append(batch)
        if not self._is_short:
            self._try(batch, run)
        if not is_last:
            return torch.zeros((), device=batch["targets"].device)
        has_gradient = self._agree()
        while has_gradient is None:
            self._make_parts_smaller(step)
            for each in self._batches:
                self._try(each, run)
            has_gradient = self._agree()
        loss = torch.stack(self._losses).sum()
        if self._bad_steps is not None:
            self._bad_steps.mark(loss, self._weights)
        if self._context.world_size > 1:
            sum_gradients(self._weights, has_gradient)
        if self._bad_steps is not None:
            loss = self._bad_steps.look(loss, self._weights, self._batches)
        self._batches, self._losses = [], []
        return loss

    def _try(self, batch: Batch, run: Callable[[Batch], torch.Tensor]) -> None:
        """Runs a micro-batch, in parts where that was found necessary; notes it if memory runs out."""
        if self._is_short:
            return
        try:
            for part in self._parts_of(batch):
                self._losses.append(run(part))
        except torch.OutOfMemoryError:
            # What the traceback still refers to is let go only behind this block.
            self._is_short = True

    def _parts_of(self, batch: Batch) -> Sequence[Batch]:
        if self.parts == 1:
            return [batch]
        device = batch["targets"].device
        collator = self._collator.for_parts(self.parts)
        split = split_rows(batch["rows"], self._micro_batch_size, self.parts)
        return (to_device(collator(rows), device) for rows in split)

    def _agree(self) -> list[bool] | None:
        """For each weight, whether any process has a gradient; None if memory ran out on any.

        Raises:
            MemoryShortage: if it did, and no process has rows that could be parted further.
        """
        largest = max(
            len(rows)
            for batch in self._batches
            for rows in split_rows(batch["rows"], self._micro_batch_size, self.parts)
        )
        can_be_parted = self._is_short and largest > 1
        mine = [self._is_short, can_be_parted, *(weight.grad is not None for weight in self._weights)]
        all_of_them = torch.tensor(mine, dtype=torch.uint8)
        if self._group is not None:
            distributed.all_reduce(all_of_them, op=distributed.ReduceOp.MAX, group=self._group)
        is_short, can_be_parted, *has_gradient = all_of_them.tolist()
        if is_short and not can_be_parted:
            longest = max(len(row["input_ids"]) for batch in self._batches for row in batch["rows"])
            raise MemoryShortage(
                f"Out of memory on {self._context.device} with a single row (of up to {longest:,} tokens) at a time. "
                "Checkpoints are untouched; go on with resume_from_checkpoint: auto and gradient_checkpointing: true, "
                "a smaller max_seq_length, or lora_config (a new run). --dry_run shows what takes the memory."
            )
        return None if is_short else [bool(has) for has in has_gradient]

    def _make_parts_smaller(self, step: int) -> None:
        """Drops what there is of the gradient, and the losses with it."""
        self.shortages += 1
        self.parts = next_parts(self._micro_batch_size, self.parts)
        for weight in self._weights:
            weight.grad = None
        self._losses, self._is_short = [], False
        self._on_again()
        if self._context.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._random_state.restore()  # dropout draws what it would have drawn
        logger.info(
            "Out of memory at step %d: it is done again with %s at a time on each device, as are the steps to come. "
            "What a step trains on stays the same.",
            step,
            self.describe_size(),
        )

    def describe_size(self) -> str:
        """How much is in work at a time: `4 of 8 rows`."""
        size, parts = self._micro_batch_size, self.parts
        return f"{size // parts} of {size}" if parts <= size else f"1/{parts // size} of a pack"
