"""Clips a step's gradient (Pascanu et al., 2013) without a pass over it, where the optimizer scales while it reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sft.training.bad_steps import BadSteps
from sft.training.evaluating_trainer import EvaluatingTrainer

_EPSILON = 1e-6
"""As in `torch.nn.utils.clip_grad_norm_`."""


def clip_gradient(weights: Iterable[nn.Parameter], norm: torch.Tensor, max_norm: float, optimizer: Any) -> None:
    """Scale a gradient to `max_norm` if its norm is larger. Does not synchronize with a GPU.

    torch's fused optimizers divide by their attribute `grad_scale`, which GradScaler is made for; with others the
    gradient is multiplied here.

    Args:
        weights: of the model, on one device.
        norm: L2 norm of their gradients; float scalar on their device. If it is NaN, the optimizer must skip the step.
        max_norm: above 0.
        optimizer: torch's, unwrapped; its next step applies the scale.
    """
    factor = (max_norm / (norm + _EPSILON)).clamp(max=1.0)
    is_clipped = factor.device.type != "cpu" or factor.item() != 1.0
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale = factor.reciprocal() if is_clipped else None
    elif is_clipped:
        torch._foreach_mul_([weight.grad for weight in weights if weight.grad is not None], factor)


class ClippingTrainer(EvaluatingTrainer):
    """Clips by the norm that the check for bad steps has computed, and logs it."""

    bad_steps: BadSteps

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips the gradient of a step; returns its norm."""
        norm = self.bad_steps.gradient_norm
        if norm is None:  # with FSDP, DeepSpeed or a GradScaler
            return super()._clip_grad_norm(model)
        clip_gradient(model.parameters(), norm, self.args.max_grad_norm, self._inner_optimizer)
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm for the log; `grad_norm` is None without clipping."""
        return super()._get_grad_norm(model, self.bad_steps.gradient_norm if grad_norm is None else grad_norm)
