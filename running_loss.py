"""The loss between two logs, and of the whole run: the same numbers for a run that goes on as for one never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from sft_types import DistributedContext


class RunningLoss(TrainerCallback):
    """Takes from transformers' Trainer, and gives back to it, what it adds up of the loss.

    Trainer begins at zero where it goes on: the next log would be of fewer steps than it says, and the mean at the end
    of a part of the run.
    """

    def __init__(self, trainer: Any, context: DistributedContext):
        self._trainer = trainer
        self._context = context
        self._restored: Mapping[str, Any] | None = None
        self._first_step = 0
        self.mean: float | None = None
        """Mean of all steps' losses, once training has ended; None where there was none."""

    def go_on_from(self, facts: Mapping[str, Any] | None) -> None:
        """Has training begin with what `facts` said when a checkpoint was saved; None where it said nothing."""
        self._restored = facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._restored is None:
            self._first_step = state.global_step
            return
        since = self._restored["since_log"]
        # The log takes the mean over processes: with another number of them, each gets that.
        own = since[self._context.rank] if len(since) == self._context.world_size else sum(since) / len(since)
        self._trainer._tr_loss += own
        self._trainer._globalstep_last_logged = self._restored["logged_at"]
        self._trainer._total_loss_scalar = self._restored["until_log"]
        self._first_step = self._restored["first_step"]

    def facts(self) -> dict[str, Any]:
        """For a checkpoint: the sum up to the last log, its step, and each process's sum since. All must call it."""
        return {
            "first_step": self._first_step,
            "until_log": self._trainer._total_loss_scalar,
            "logged_at": self._trainer._globalstep_last_logged,
            "since_log": self._since_log(),
        }

    def end(self) -> None:
        """Makes the mean of the run, before Trainer closes its sums. All processes must call it."""
        since = self._since_log()
        steps = self._trainer.state.global_step - self._first_step
        if steps:
            self.mean = (self._trainer._total_loss_scalar + sum(since) / len(since)) / steps

    def _since_log(self) -> list[float]:
        own = self._trainer._tr_loss.reshape(1)
        if self._context.world_size == 1:
            return own.tolist()
        everyone = [torch.zeros_like(own) for _ in range(self._context.world_size)]
        torch.distributed.all_gather(everyone, own)
        return torch.cat(everyone).tolist()
