"""The loss that a run would log without weights: the mean over supervised tokens, each counted once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sft.common.run_records import DistributedContext


class PlainLoss:
    """Adds up the plain loss on the device. It is logged once there was a weighted row. Resuming does not change it."""

    def __init__(self, trainer: Any, context: DistributedContext, device: torch.device):
        """
        Args:
            trainer: knows which steps are bad.
            context: this process.
            device: holds the sums, so that adding does not synchronize with it.
        """
        self._trainer = trainer
        self._context = context
        self._step = torch.zeros((), dtype=torch.float32, device=device)
        """This process's sum over the supervised tokens of the current step."""
        self._since_log = self._step.clone()
        """This process's share of the losses of the steps since the last log."""
        self._steps = 0
        """Steps since the last log."""
        self._until_log = 0.0
        """Sum of the losses of all steps up to the last log."""
        self._tokens: torch.Tensor | float = 1.0
        self._weighted_rows: torch.Tensor | float = 0.0
        """Of all steps and processes."""
        self.mean_loss: float | None = None
        """Mean plain loss of all steps, once training has ended; None without a weighted row."""

    def begin_step(self, tokens: torch.Tensor, weighted_rows: torch.Tensor) -> None:
        """Begins a step with these numbers of supervised tokens and of weighted rows, over all processes."""
        self.restart_step()
        self._tokens = tokens.clamp(min=1)
        self._weighted_rows = self._weighted_rows + weighted_rows

    def restart_step(self) -> None:
        """Discards what was added since `begin_step`."""
        self._step.zero_()

    def add(self, loss_sum: torch.Tensor) -> None:
        """Adds a sum of the cross-entropies of supervised tokens."""
        self._step += loss_sum

    def end_step(self) -> None:
        """Adds the step; one that is skipped counts as 0, as in the logged loss."""
        loss = (self._step / self._tokens).to(self._since_log)
        self._since_log += torch.where(self._trainer.bad_steps.is_bad | ~loss.isfinite(), 0.0, loss)
        self._steps += 1

    def take_metrics(self) -> dict[str, float]:
        """`loss_unweighted` since the last call, if there was a weighted row. A collective operation."""
        total, steps = sum(of_each_process(self._since_log, self._context)), self._steps
        self._until_log += total
        self._since_log.zero_()
        self._steps = 0
        return {"loss_unweighted": total / steps} if steps and float(self._weighted_rows) else {}

    def finish(self, steps: int) -> None:
        """Computes `mean_loss` of this many steps. A collective operation."""
        since = sum(of_each_process(self._since_log, self._context))
        if float(self._weighted_rows):
            self.mean_loss = (self._until_log + since) / steps

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint. A collective operation."""
        return {
            "since_log": of_each_process(self._since_log, self._context),
            "steps_since_log": self._steps,
            "until_log": self._until_log,
            "weighted_rows": float(self._weighted_rows),
        }

    def resume_from(self, state: Mapping[str, Any] | None) -> None:
        """Resumes from the `state_dict` of a checkpoint; None if the checkpoint has none."""
        if state is None:
            return
        since = state["since_log"]
        # Added up over processes: if their number has changed, each one receives the mean.
        is_same = len(since) == self._context.world_size
        self._since_log += since[self._context.rank] if is_same else sum(since) / self._context.world_size
        self._steps = state["steps_since_log"]
        self._until_log = state["until_log"]
        self._weighted_rows = state["weighted_rows"]


def of_each_process(value: torch.Tensor, context: DistributedContext) -> list[float]:
    """A scalar of each process. A collective operation."""
    own = value.reshape(1)
    if context.world_size == 1:
        return own.tolist()
    of_all = [torch.zeros_like(own) for _ in range(context.world_size)]
    torch.distributed.all_gather(of_all, own)
    return [float(each) for each in of_all]
