"""Does every adapter get a gradient? Checked once, in the first step: without one it stays as it was initialized.

What never gets one is on a layer that is not called, or whose weight is read beside it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from sft.modeling.own_parameters import kinds_of

logger = logging.getLogger("sft.train")
_FIRST, _SECOND = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")


class AdapterGradients(TrainerCallback):
    """Logs the trainable tensors without a gradient in the first step that has one."""

    def __init__(self) -> None:
        self._is_done = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._is_done:
            return
        names, has_gradient = gradients_of(model)
        self._is_done = any(has_gradient)  # a skipped step, or one without a supervised token, has none at all
        missing = [name for name, found in zip(names, has_gradient, strict=True) if not found]
        if self._is_done and missing:
            logger.info(
                "Adapters: %d of %d tensors got no gradient in the first step (%s). They stay as they are unless later "
                "steps reach them: an expert that no token was routed to, or a layer that the model does not call.",
                len(missing),
                len(names),
                kinds_of(missing),
            )


def gradients_of(model: Any) -> tuple[list[str], list[bool]]:
    """The trainable tensors by their names, and whether each has a gradient other than zero, on any process.

    The first matrix of an adapter has a gradient of zero while the second is zero, as it is at first; so it counts as
    the second one does.
    """
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    norms = torch.stack([_norm(weight) for _, weight in trainable])
    if any(isinstance(weight, DTensor) for _, weight in trainable):
        distributed.all_reduce(norms, op=distributed.ReduceOp.MAX)
    found = dict(zip((name for name, _ in trainable), (norms != 0).tolist(), strict=True))
    for name in found:
        for first, second in zip(_FIRST, _SECOND, strict=True):
            found[name] = found[name] or (f".{first}." in name and found.get(name.replace(first, second), False))
    return list(found), list(found.values())


def _norm(weight: torch.nn.Parameter) -> torch.Tensor:
    """The largest absolute value of this process's gradient; NaN counts as one."""
    gradient = weight.grad
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    if local is None or not local.numel():
        return torch.zeros((), device=weight.device)
    return torch.linalg.vector_norm(local.detach().float(), ord=torch.inf).nan_to_num(1.0)
