"""AdamW for bfloat16 weights without a float32 copy: what rounding would lose is kept, or rounded without bias.

bfloat16 has 8 significant bits, so an update below about 1/512 of a weight is lost when the sum is rounded to nearest,
in every step again. Two remedies:

- `split`: the optimizer keeps the lower 16 bits of each weight as a float32, of which the bfloat16 weight is the upper
  half, rounded. Nothing is lost, in the memory that Kahan summation needs for its bfloat16 compensation, which has 8
  bits only.
- `stochastic`: a sum is rounded up or down with probabilities that make its expectation exact (Gupta et al., 2015, Deep
  Learning with Limited Numerical Precision). The random numbers depend on the seed and the step alone, so they are the
  same on every process and after a resume.

Updates are computed in float32, for some of the weights at a time. The second moment stays in float32: with `beta2`
0.999 a step changes it by a thousandth, which bfloat16 cannot represent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from transformers import TrainingArguments

from sft.configuration.installed_transformers import BFLOAT16_OPTIMIZERS

Rounding = Literal["split", "stochastic"]
_PART = 1 << 24
"""Weights that are updated at a time."""


class _Part(NamedTuple):
    """Some of the weights of a tensor, with their gradient and state; of one shape."""

    weight: torch.Tensor
    gradient: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor
    lower: torch.Tensor | None = None
    """Of the weights as float32, int16; None with stochastic rounding."""


class BFloat16AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter, 2019). Weights of other types than bfloat16 are updated as by `torch.optim.AdamW`."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rounding: Rounding,
        seed: int,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        """
        Args:
            params: weights, or groups of them, as for torch's optimizers.
            rounding: how bfloat16 weights are rounded.
            seed: of the random numbers of stochastic rounding.
            lr, betas, eps, weight_decay: as for `torch.optim.AdamW`.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._rounding, self._seed = rounding, seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[tuple[torch.device, int], torch.Generator] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self._state_of(weight)
                state["step"] += 1
                key = weight.device, state["step"]
                if key not in generators:
                    # Seed and step in separate bits: no two pairs share a sequence.
                    generators[key] = torch.Generator(weight.device).manual_seed((self._seed << 31) + state["step"])
                for part in _parts(weight, state):
                    _update(part, state["step"], group, generators[key])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would convert all state to the type of the weights."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for weight, number in zip(weights, numbers, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[weight][name] = value.to(weight.device, copy=True)

    def _state_of(self, weight: torch.Tensor) -> dict[str, Any]:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
            if self._rounding == "split" and weight.dtype == torch.bfloat16:
                state["lower"] = torch.zeros_like(weight, dtype=torch.int16)
        return state


def _parts(weight: torch.Tensor, state: Mapping[str, Any]) -> Iterator[_Part]:
    """A weight in parts, so that float32 copies of an embedding are not held whole."""
    tensors = [weight.data, weight.grad, *(state[name] for name in ("exp_avg", "exp_avg_sq"))]
    tensors += [state["lower"]] if "lower" in state else []
    if all(tensor.is_contiguous() for tensor in tensors):
        for pieces in zip(*(tensor.view(-1).split(_PART) for tensor in tensors), strict=True):
            yield _Part(*pieces)
    else:
        yield _Part(*tensors)


def _update(part: _Part, step: int, group: Mapping[str, Any], generator: torch.Generator) -> None:
    """Advance the moments and the weights."""
    beta1, beta2 = group["betas"]
    gradient = part.gradient.float()
    mean = part.mean.to(torch.float32, copy=True).lerp_(gradient, 1 - beta1)
    part.mean.copy_(mean)
    square = part.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
    update = mean.div_(root).mul_(-group["lr"] / (1 - beta1**step))
    values = _exact(part).mul_(1 - group["lr"] * group["weight_decay"]).add_(update)
    if part.weight.dtype != torch.bfloat16:
        part.weight.copy_(values)
    elif part.lower is None:
        part.weight.copy_(round_stochastically(values, generator))
    else:
        _split(values, part.weight, part.lower)


def _exact(part: _Part) -> torch.Tensor:
    """The weights in float32, a copy."""
    if part.lower is None:
        return part.weight.to(torch.float32, copy=True)
    return part.weight.view(torch.int16).int().bitwise_left_shift_(16).add_(part.lower).view(torch.float32)


def _split(values: torch.Tensor, weight: torch.Tensor, lower: torch.Tensor) -> None:
    """Store float32 values in a bfloat16 tensor, rounded to nearest, and an int16 tensor that counts from there."""
    bits = values.view(torch.int32)
    upper = bits.add(1 << 15).bitwise_right_shift_(16)
    weight.view(torch.int16).copy_(upper)
    lower.copy_(bits.sub_(upper.bitwise_left_shift_(16)))


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Round float32 values to bfloat16, up or down, with the exact value as their expectation.

    bfloat16 is the upper half of a float32. A random lower half is added, and the carry decides.

    Args:
        values: finite float32; overwritten.
        generator: on their device.
    """
    bits = values.view(torch.int32)
    bits.add_(torch.empty_like(bits).random_(0, 1 << 16, generator=generator)).bitwise_and_(-(1 << 16))
    return values.bfloat16()


def own_optimizer(name: str, arguments: TrainingArguments) -> tuple[type[BFloat16AdamW], dict[str, Any]] | None:
    """Class and keyword arguments for transformers' Trainer, which adds the weights; None if the optimizer is not ours.

    Args:
        name: the value of `optim`.
        arguments: transformers' settings.
    """
    if name not in BFLOAT16_OPTIMIZERS:
        return None
    return BFloat16AdamW, {
        "rounding": name.rpartition("_")[2],
        "seed": arguments.seed,
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
