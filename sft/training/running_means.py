"""Means over the steps between two logs, and over the whole run: for a run that goes on as for one never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from sft.common.run_records import DistributedContext


class RunningMeans(TrainerCallback):
    """The loss, which transformers' Trainer adds up, and the share of trained tokens that were the most likely ones.

    Trainer begins its sums at zero where it goes on: the next log would be of fewer steps than it says, and the mean at
    the end of a part of the run.
    """

    def __init__(self, trainer: Any, context: DistributedContext, device: torch.device):
        """Args:
        trainer: whose sums of the loss these are.
        context: this process among all.
        device: where tokens are counted, so that nothing waits.
        """
        self._trainer = trainer
        self._context = context
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        """Of this process since the last log."""
        self._hits_before_step = self._hits.clone()
        self._tokens: torch.Tensor | float = 0.0
        """Supervised ones of all processes since the last log."""
        self._restored: Mapping[str, Any] | None = None
        self._first_step = 0
        self.mean_loss: float | None = None
        """Mean of all steps' losses, once training has ended; None where there was none."""

    def resume_from(self, facts: Mapping[str, Any] | None) -> None:
        """Has training begin with what `facts` said when a checkpoint was saved; None where it said nothing."""
        self._restored = facts

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        if self._restored is None:
            return
        since = self._restored["losses_since_log"]
        # The log takes the mean over processes: with another number of them, each gets that.
        own = since[self._context.rank] if len(since) == self._context.world_size else sum(since) / len(since)
        self._trainer._tr_loss += own
        self._trainer._globalstep_last_logged = self._restored["logged_at"]
        self._trainer._total_loss_scalar = self._restored["loss_until_log"]
        self._first_step = self._restored["first_step"]
        self._tokens += self._restored["tokens_since_log"]
        if self._context.is_main_process:
            self._hits += self._restored["hits_since_log"]

    # Tokens

    def begin_step(self, tokens: torch.Tensor) -> None:
        """Takes the number of supervised tokens, of all processes, that the next step trains on."""
        self._tokens = self._tokens + tokens
        self._hits_before_step.copy_(self._hits)

    def begin_step_again(self) -> None:
        """Forgets what was counted since `begin_step`."""
        self._hits.copy_(self._hits_before_step)

    def count_hits(self, number: torch.Tensor) -> None:
        """Takes a number of supervised tokens that were the most likely ones."""
        self._hits += number

    def take_token_accuracy(self) -> float | None:
        """Share of the supervised tokens since the last log; None where there were none. All processes must call it."""
        hits, tokens = int(self._hits_of_all()), float(self._tokens)
        self._hits.zero_()
        self._tokens = 0.0
        return hits / tokens if tokens else None

    # Over a checkpoint, and at the end

    def facts(self) -> dict[str, Any]:
        """For a checkpoint: sums up to the last log, and since. All processes must call it."""
        return {
            "first_step": self._first_step,
            "logged_at": self._trainer._globalstep_last_logged,
            "loss_until_log": self._trainer._total_loss_scalar,
            "losses_since_log": self._losses_since_log(),
            "hits_since_log": int(self._hits_of_all()),
            "tokens_since_log": float(self._tokens),
        }

    def end(self) -> None:
        """Makes the mean of the run, before Trainer closes its sums. All processes must call it."""
        since = self._losses_since_log()
        steps = self._trainer.state.global_step - self._first_step
        if steps:
            self.mean_loss = (self._trainer._total_loss_scalar + sum(since) / len(since)) / steps

    def _losses_since_log(self) -> list[float]:
        """Each process's sum."""
        own = self._trainer._tr_loss.reshape(1)
        if self._context.world_size == 1:
            return own.tolist()
        everyone = [torch.zeros_like(own) for _ in range(self._context.world_size)]
        torch.distributed.all_gather(everyone, own)
        return torch.cat(everyone).tolist()

    def _hits_of_all(self) -> torch.Tensor:
        hits = self._hits.clone()
        if self._context.world_size > 1:
            torch.distributed.all_reduce(hits)
        return hits
