"""Steps whose loss or gradient is NaN or inf: the update is skipped on all processes, and the steps are counted.

The check does not synchronize with the device: the flag stays there, and the fused optimizers read it as they read the
`found_inf` of torch's GradScaler, with FSDP too. Before the step of another optimizer, the flag has to be read. On CUDA
a bad step is logged one step later, once the flag has been copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from sft.common.errors import TrainingError
from sft.common.run_records import DistributedContext
from sft.processes.agreement import gather_values, open_cpu_group

logger = logging.getLogger("sft.train")
MAX_LISTED_ROWS = 8


class BadSteps(TrainerCallback):
    """Skips the updates of bad steps, and ends the run after too many consecutive ones."""

    def __init__(
        self,
        context: DistributedContext,
        *,
        device: torch.device,
        max_consecutive: int,
        locate_row: Callable[[int], str] | None,
    ):
        """
        Args:
            context: this process; with several processes, a process group must be open.
            device: device of the gradients.
            max_consecutive: number of consecutive bad steps that ends the run.
            locate_row: maps the number of a training row to its file and line; None if rows have no number.
        """
        self._context = context
        self._max_consecutive = max_consecutive
        self._locate_row = locate_row
        self._group = open_cpu_group(context)
        self._flag = torch.zeros((), dtype=torch.float32, device=device)
        """1 if the current step is bad, else 0."""
        self._optimizer_reads_flag = False
        self._rows: list[int] = []
        self._pending: tuple[int, torch.Tensor, Any, list[int]] | None = None
        """Step, flag in main memory, event of its copy, rows of a step that is not counted yet."""
        self._consecutive = 0
        self.count = 0
        self.gradient_norm: torch.Tensor | None = None
        """L2 norm of the step's gradient, float32; None before the first `check`, and if there is no gradient."""

    @property
    def is_bad(self) -> torch.Tensor:
        """Whether the last step that was checked is bad, a bool scalar on the device."""
        return self._flag > 0

    def mark(self, loss: torch.Tensor, weights: Sequence[nn.Parameter]) -> None:
        """Writes NaN into a gradient if this process's loss is not finite. Call it before gradients are summed."""
        gradients = (weight.grad for weight in weights)
        first = next((gradient for gradient in gradients if gradient is not None and gradient.numel()), None)
        if first is not None:  # one value: it is often the gradient of the embedding, the largest of all
            first[(0,) * first.dim()] += torch.where(loss.isfinite(), 0.0, torch.nan).to(first.dtype)

    def check(
        self, loss: torch.Tensor, weights: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """Checks a step's gradient after it was summed over all processes.

        Returns:
            The loss to log: zero if the update is skipped.
        """
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self.gradient_norm = None
        if gradients:
            norms = _norms(gradients)
            self.gradient_norm = torch.linalg.vector_norm(norms)
            self._flag.copy_(~norms.isfinite().all())
        return self._loss_to_log(loss, batches)

    def check_sharded(
        self, loss: torch.Tensor, weights: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """Checks a gradient of which each process holds a shard; the result is the same on all processes.

        Returns:
            The loss to log: zero if the update is skipped.
        """
        shards = [cast(DTensor, weight.grad).to_local() for weight in weights if weight.grad is not None]
        is_good = loss.isfinite() if not shards else loss.isfinite() & _norms(shards).isfinite().all()
        self._flag.copy_(~is_good)
        if self._group is not None:  # on the device: reading the flag would wait for it
            distributed.all_reduce(self._flag, op=distributed.ReduceOp.MAX)
        return self._loss_to_log(loss, batches)

    def _loss_to_log(self, loss: torch.Tensor, batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        self._rows = [row["number"] for batch in batches for row in batch["rows"] if "number" in row]
        return torch.where(self._flag > 0, torch.zeros_like(loss), loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        # With fp16 the GradScaler skips updates; it sets these attributes itself.
        if getattr(inner, "_step_supports_amp_scaling", False) and not args.fp16:
            inner.found_inf, inner.grad_scale = self._flag, None
            self._optimizer_reads_flag = True

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if not self._optimizer_reads_flag and not args.fp16 and self._flag.item():
            optimizer.zero_grad(set_to_none=True)  # the optimizer skips weights without a gradient

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:
            return
        if self._flag.device.type != "cuda":
            self._record(state.global_step, bool(self._flag.item()), self._rows)
            return
        self.record_pending()
        host = torch.empty((), dtype=torch.float32, pin_memory=True)
        host.copy_(self._flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = (state.global_step, host, copied, self._rows)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record_pending()

    def record_pending(self) -> None:
        """Counts and logs the previous step, if that has not happened yet."""
        if self._pending is not None:
            step, host, copied, rows = self._pending
            self._pending = None
            copied.synchronize()
            self._record(step, bool(host.item()), rows)

    def _record(self, step: int, is_bad: bool, rows: Sequence[int]) -> None:
        """Counts a step. `is_bad` is the same on all processes, because it describes their common gradient.

        Raises:
            TrainingError: on all processes, after too many consecutive bad steps.
        """
        if not is_bad:
            self._consecutive = 0
            return
        self.count += 1
        self._consecutive += 1
        locations = self._describe_rows(rows)
        logger.info(
            "Step %d: the loss or gradient is NaN or inf; update skipped (%d consecutive).%s",
            step,
            self._consecutive,
            f" Rows: {locations}." if locations else "",
        )
        if self._consecutive >= self._max_consecutive:
            raise TrainingError(
                f"max_bad_steps: the loss or gradient was NaN or inf in {self._consecutive} consecutive steps, up to "
                f"step {step}. Their updates were skipped, so checkpoints do not contain them. Lower learning_rate, "
                f"check the rows{f' ({locations})' if locations else ''}, or start a new run in bf16 or float32."
            )

    def _describe_rows(self, rows: Sequence[int]) -> str:
        """Locations of the rows of all processes; the first few of them."""
        rows = [row for own in gather_values(list(rows), self._context, self._group) for row in own]
        if self._locate_row is None or not rows:
            return ""
        more = f" and {len(rows) - MAX_LISTED_ROWS} more" if len(rows) > MAX_LISTED_ROWS else ""
        return ", ".join(self._locate_row(row) for row in rows[:MAX_LISTED_ROWS]) + more


def _norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of each tensor, float32, on their device. It is finite if all values are (and do not overflow it)."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))])
