"""The gradient of one optimizer step with FSDP2, which reduces the shards during the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sft.common.device_errors import is_out_of_memory
from sft.common.errors import MemoryShortage
from sft.training.bad_steps import BadSteps

Batch = Mapping[str, Any]


class ShardedStep:
    """Adds up a step's loss over micro-batches, and checks the gradient for NaN and inf.

    When a process runs out of memory inside a layer, the other processes wait in that layer's collective operation. So
    unlike `StepGradient`, this class cannot retry the step in smaller chunks.
    """

    def __init__(self, weights: Callable[[], Sequence[nn.Parameter]], bad_steps: BadSteps):
        """
        Args:
            weights: returns this process's shards of the trainable weights.
            bad_steps: checks the gradient of each step.
        """
        self._weights = weights
        self._bad_steps = bad_steps
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []

    def add(self, batch: Batch, run: Callable[[Batch], torch.Tensor], *, is_last: bool) -> torch.Tensor:
        """Runs a micro-batch.

        Args:
            batch: the collator's output, on the device.
            run: forward and backward pass of a batch; returns its share of the step's loss.
            is_last: whether this is the last micro-batch of the step.

        Returns:
            Float scalar: for the last micro-batch this process's share of the step's loss, else zero.

        Raises:
            MemoryShortage: if memory runs out on this process; the launcher then ends the other processes.
        """
        try:
            self._losses.append(run(batch))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryShortage(shortage_message(batch)) from None
        self._batches.append(batch)
        loss = torch.zeros_like(self._losses[-1])
        if is_last:
            loss = torch.stack(self._losses).sum()
            loss = self._bad_steps.check_sharded(loss, self._weights(), self._batches)
            self._batches, self._losses = [], []
        return loss


def shortage_message(batch: Batch) -> str:
    """The message for memory that runs out in a forward or backward pass that all processes compute together."""
    longest = max((len(row["input_ids"]) for row in batch["rows"]), default=0)
    return (
        f"Out of memory on {batch['targets'].device} with a micro-batch of {len(batch['rows'])} rows (of up to "
        f"{longest:,} tokens), and with fsdp a micro-batch cannot be split. Checkpoints are intact: resume with "
        "resume_from_checkpoint: auto and a smaller per_device_train_batch_size (with global_batch_size, training "
        "stays the same), gradient_checkpointing: true, or more GPUs."
    )
