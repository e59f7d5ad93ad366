"""Loss and token accuracy since the last log, and the mean loss of the run. Resuming does not change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from sft.common.run_records import DistributedContext
from sft.training.plain_loss import PlainLoss, of_each_process


class RunningMeans(TrainerCallback):
    """Keeps the sums of the loss, which transformers' Trainer adds up, and the counts of the token accuracy.

    When Trainer resumes, it starts its sums at zero: the next logged loss would cover fewer steps than stated, and the
    final mean only some steps of the run. This callback saves the sums in checkpoints and restores them.
    """

    def __init__(
        self, trainer: Any, context: DistributedContext, device: torch.device, *, keeps_plain_loss: bool = False
    ):
        """
        Args:
            trainer: adds up the loss.
            context: this process.
            device: holds the counts, so that counting does not synchronize with it.
            keeps_plain_loss: whether rows may have weights in the loss.
        """
        self.plain = PlainLoss(trainer, context, device) if keeps_plain_loss else None
        """The loss without weights; None where no row can have any."""
        self._trainer = trainer
        self._context = context
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        """Correctly predicted tokens of this process since the last log."""
        self._correct_before_step = self._correct.clone()
        self._tokens: torch.Tensor | float = 0.0
        """Supervised tokens of all processes since the last log."""
        self._router_loss = torch.zeros((), dtype=torch.float32, device=device)
        """Sum of the load-balancing losses of the steps since the last log, the same on all processes."""
        self._router_steps = 0
        self._restored: Mapping[str, Any] | None = None
        self._first_step = 0
        self.mean_loss: float | None = None
        """Mean loss of all steps, once training has ended; None if there was no step."""

    def resume_from(self, state: Mapping[str, Any] | None) -> None:
        """Resumes from the `state_dict` of a checkpoint; None if the checkpoint has none."""
        self._restored = state

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds the plain loss of the step."""
        if self.plain is not None:
            self.plain.end_step()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first_step = state.global_step
        if self._restored is None:
            return
        since = self._restored["losses_since_log"]
        # The logged loss is the mean over processes: if their number has changed, each one receives the mean.
        own = since[self._context.rank] if len(since) == self._context.world_size else sum(since) / len(since)
        self._trainer._tr_loss += own
        self._trainer._globalstep_last_logged = self._restored["logged_at"]
        self._trainer._total_loss_scalar = self._restored["loss_until_log"]
        self._first_step = self._restored["first_step"]
        self._tokens += self._restored["tokens_since_log"]
        loss, self._router_steps = self._restored.get("router_loss_since_log") or (0.0, 0)
        self._router_loss += loss
        if self.plain is not None:
            self.plain.resume_from(self._restored.get("plain_loss"))
        if self._context.is_main_process:
            self._correct += self._restored["hits_since_log"]

    def begin_step(self, tokens: torch.Tensor, weighted_rows: torch.Tensor) -> None:
        """Adds the number of supervised tokens and of weighted rows, over all processes, of the next step."""
        if self.plain is not None:
            self.plain.begin_step(tokens, weighted_rows)
        self._tokens = self._tokens + tokens
        self._correct_before_step.copy_(self._correct)

    def restart_step(self) -> None:
        """Discards what was counted since `begin_step`."""
        if self.plain is not None:
            self.plain.restart_step()
        self._correct.copy_(self._correct_before_step)

    def add_correct(self, number: torch.Tensor) -> None:
        """Adds a number of supervised tokens that were predicted correctly, by the highest logit."""
        self._correct += number

    def take_token_accuracy(self) -> float | None:
        """Share of correct supervised tokens since the last call, which resets the counts; None if there were none.

        A collective operation: all processes must call it.
        """
        correct, tokens = int(self._correct_of_all()), float(self._tokens)
        self._correct.zero_()
        self._tokens = 0.0
        return correct / tokens if tokens else None

    def add_router_loss(self, value: torch.Tensor) -> None:
        """Adds the load-balancing loss of a step, a scalar on the device."""
        self._router_loss += value
        self._router_steps += 1

    def take_metrics(self) -> dict[str, float]:
        """`loss_unweighted`, `token_accuracy` and `router_aux_loss` since the last call, where there are any.

        A collective operation.
        """
        metrics = {} if self.plain is None else self.plain.take_metrics()
        accuracy = self.take_token_accuracy()
        if accuracy is not None:
            metrics["token_accuracy"] = accuracy
        if self._router_steps:
            metrics["router_aux_loss"] = float(self._router_loss) / self._router_steps
        self._router_loss.zero_()
        self._router_steps = 0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Sums up to the last log and since, for a checkpoint. All processes must call it."""
        return {
            "first_step": self._first_step,
            "logged_at": self._trainer._globalstep_last_logged,
            "loss_until_log": self._trainer._total_loss_scalar,
            "losses_since_log": self._losses_since_log(),
            "hits_since_log": int(self._correct_of_all()),
            "tokens_since_log": float(self._tokens),
            "router_loss_since_log": [float(self._router_loss), self._router_steps],
            **({} if self.plain is None else {"plain_loss": self.plain.state_dict()}),
        }

    def finish(self) -> None:
        """Computes `mean_loss` before Trainer resets its sums. All processes must call it."""
        since = self._losses_since_log()
        steps = self._trainer.state.global_step - self._first_step
        if steps:
            self.mean_loss = (self._trainer._total_loss_scalar + sum(since) / len(since)) / steps
            if self.plain is not None:
                self.plain.finish(steps)

    def _losses_since_log(self) -> list[float]:
        """The sum of each process."""
        return of_each_process(self._trainer._tr_loss, self._context)

    def _correct_of_all(self) -> torch.Tensor:
        correct = self._correct.clone()
        if self._context.world_size > 1:
            torch.distributed.all_reduce(correct)
        return correct
