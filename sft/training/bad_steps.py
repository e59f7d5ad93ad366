"""Steps whose loss or gradient is no finite number: their update is left out, on all processes, and counted.

Nothing is waited for: the flag stands on the device, and the fused optimizers take it from there, as they take it from
torch's GradScaler (their `found_inf`). A person is told a step later, when the number has come over by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn
from transformers import TrainerCallback

from sft.common.errors import TrainingError
from sft.common.run_records import DistributedContext

logger = logging.getLogger("sft.train")
TOLD_ROWS = 8


class BadSteps(TrainerCallback):
    """Leaves updates out, and ends the run after too many in a row."""

    def __init__(
        self,
        context: DistributedContext,
        *,
        device: torch.device,
        most_in_a_row: int,
        place_of: Callable[[int], str] | None,
        leaves_out_by_hand: bool = False,
    ):
        """Args:
        context: this process; with several, a process group must be open.
        device: of the gradients.
        most_in_a_row: after so many, training cannot be what was meant.
        place_of: where a training row stands, by its number; None for rows without one.
        leaves_out_by_hand: the optimizer cannot be told; gradients are dropped before it comes to them.
        """
        self._context = context
        self._most_in_a_row = most_in_a_row
        self._place_of = place_of
        self._group = distributed.new_group(backend="gloo") if context.world_size > 1 else None
        self._flag = torch.zeros((), dtype=torch.float32, device=device)
        """1 where the step at hand is bad, else 0."""
        self._is_left_to_optimizer = False
        self._leaves_out_by_hand = leaves_out_by_hand
        self._rows: list[int] = []
        self._earlier: tuple[int, torch.Tensor, Any, list[int]] | None = None
        """Step, flag in main memory, the event of its copy, rows: what is not told yet."""
        self._in_a_row = 0
        self.count = 0

    def mark(self, loss: torch.Tensor, weights: Sequence[nn.Parameter]) -> None:
        """Lets the gradient of a step tell that its loss on this process was not finite, before it is summed."""
        first = next((weight.grad for weight in weights if weight.grad is not None), None)
        if first is not None:
            first += torch.where(loss.isfinite(), 0.0, torch.nan).to(first.dtype)

    def look(
        self, loss: torch.Tensor, weights: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """Looks at the step's gradient, which is that of all processes by now.

        Returns:
            The loss to be logged: zero where the update is left out.
        """
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if gradients:
            self._flag.copy_(~_are_finite(gradients))
        return self._told_loss(loss, batches)

    def look_at_parts(
        self, loss: torch.Tensor, weights: Sequence[nn.Parameter], batches: Sequence[Mapping[str, Any]]
    ) -> torch.Tensor:
        """Likewise where each process has its own part of the step's gradient: all of them learn of a bad one."""
        parts = [weight.grad.to_local() for weight in weights if weight.grad is not None]
        is_good = loss.isfinite() if not parts else loss.isfinite() & _are_finite(parts)
        is_bad = (~is_good).to("cpu", torch.float32)
        if self._group is not None:
            distributed.all_reduce(is_bad, op=distributed.ReduceOp.MAX, group=self._group)
        self._flag.copy_(is_bad)
        return self._told_loss(loss, batches)

    def _told_loss(self, loss: torch.Tensor, batches: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        self._rows = [row["number"] for batch in batches for row in batch["rows"] if "number" in row]
        return torch.where(self._flag > 0, torch.zeros_like(loss), loss)

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._leaves_out_by_hand:
            return
        # With a GradScaler (fp16) it is the scaler that leaves updates out; it looks for its scale that way.
        if getattr(inner, "_step_supports_amp_scaling", False) and not args.fp16:
            inner.found_inf, inner.grad_scale = self._flag, None
            self._is_left_to_optimizer = True

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if not self._is_left_to_optimizer and not args.fp16 and self._flag.item():
            optimizer.zero_grad(set_to_none=True)  # without a gradient no weight is touched

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:
            return
        if self._flag.device.type != "cuda":
            self._tell(state.global_step, bool(self._flag.item()), self._rows)
            return
        self.tell_earlier()
        host = torch.empty((), dtype=torch.float32, pin_memory=True)
        host.copy_(self._flag, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._earlier = (state.global_step, host, copied, self._rows)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tell_earlier()

    def tell_earlier(self) -> None:
        """Tells what came of the step before."""
        if self._earlier is not None:
            step, host, copied, rows = self._earlier
            self._earlier = None
            copied.synchronize()
            self._tell(step, bool(host.item()), rows)

    def _tell(self, step: int, is_bad: bool, rows: Sequence[int]) -> None:
        """Counts a step; all processes have the same answer, since it is that of their common gradient.

        Raises:
            TrainingError: on all processes, if there were too many in a row.
        """
        if not is_bad:
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        told = self._places(rows)
        logger.info(
            "Step %d: its loss or gradient is no finite number; its update is left out (%d in a row).%s",
            step, self._in_a_row, f" Its rows: {told}." if told else "",
        )  # fmt: skip
        if self._in_a_row >= self._most_in_a_row:
            raise TrainingError(
                f"max_bad_steps: {self._in_a_row} steps in a row, up to step {step}, had a loss or gradient that is no "
                "finite number. Their updates were left out, and checkpoints hold none of them. Lower learning_rate, "
                f"look at the rows{f' ({told})' if told else ''}, or compute in bf16 or float32."
            )

    def _places(self, rows: Sequence[int]) -> str:
        if self._group is not None:
            of_all: list[Any] = [None] * self._context.world_size
            distributed.all_gather_object(of_all, list(rows), group=self._group)
            rows = [row for own in of_all for row in own]
        if self._place_of is None or not rows:
            return ""
        more = f" and {len(rows) - TOLD_ROWS} more" if len(rows) > TOLD_ROWS else ""
        return ", ".join(self._place_of(row) for row in rows[:TOLD_ROWS]) + more


def _are_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Whether all numbers of all of them are finite; a bool scalar on their device."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))]).isfinite().all()
