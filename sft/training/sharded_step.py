"""One optimizer step's gradient where FSDP2 spreads the weights: it is summed in the backward pass, part by part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sft.common.errors import MemoryShortage
from sft.training.bad_steps import BadSteps

Batch = Mapping[str, Any]


class ShardedStep:
    """Adds up a step's loss over micro-batches, and looks at the gradient that came of them.

    A process that runs out of memory stands in the middle of a layer, with the others waiting for its part: the step
    cannot be done again in smaller parts, as it is elsewhere.
    """

    def __init__(self, weights: Callable[[], Sequence[nn.Parameter]], bad_steps: BadSteps):
        """Args:
        weights: gives those that are trained, each process's part of them.
        bad_steps: looks at the gradient of each step.
        """
        self._weights = weights
        self._bad_steps = bad_steps
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []

    def add(self, batch: Batch, run: Callable[[Batch], torch.Tensor], *, is_last: bool) -> torch.Tensor:
        """Runs a micro-batch.

        Args:
            batch: as the collator made it, on the device.
            run: forward and backward pass of such a batch; gives its part of the step's loss.
            is_last: whether it is the last one of the step.

        Returns:
            Zero, and with the last micro-batch the loss of this process's part of the step: float scalar.

        Raises:
            MemoryShortage: if memory runs out on this process; the launcher then ends the others.
        """
        try:
            self._losses.append(run(batch))
        except torch.OutOfMemoryError:
            raise MemoryShortage(shortage_line(batch)) from None
        self._batches.append(batch)
        loss = torch.zeros_like(self._losses[-1])
        if is_last:
            loss = torch.stack(self._losses).sum()
            loss = self._bad_steps.look_at_parts(loss, self._weights(), self._batches)
            self._batches, self._losses = [], []
        return loss


def shortage_line(batch: Batch) -> str:
    """What to do where memory runs out in a forward or backward pass that all processes share."""
    longest = max((len(row["input_ids"]) for row in batch["rows"]), default=0)
    return (
        f"Out of memory on {batch['targets'].device} with {len(batch['rows'])} rows (of up to {longest:,} tokens) at a "
        "time, and with fsdp a step cannot go on in smaller parts. Checkpoints are untouched: go on with "
        "resume_from_checkpoint: auto and a smaller per_device_train_batch_size (with global_batch_size the training "
        "stays the same), gradient_checkpointing: true, or more GPUs."
    )
