"""Compares an exported model with the model that was trained by their logits, and bounds the effect of rounding.

Let `u` be the unit roundoff of a data type (half the distance from 1 to the next number: 2^-24 in float32, 2^-11 in
float16, 2^-8 in bfloat16; Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.1) and `L` the number
of layers, plus one for the embedding and one for the output layer.

- Sums of `K` products in a different order differ by a relative error of about `sqrt(K) u`, as errors have either sign
  (section 2.8). Merged and unmerged adapters in float32 are the same sums in a different order; if each layer adds
  as much again, the bound is `L sqrt(K) u`, with `K` the widest layer's input.
- Rounding the weights of a layer to a data type changes its output by a relative error of at most about `u`, and as
  errors of either sign do not grow with `K`, each layer adds at most `u`: `L u`.
- 8-bit weights of bitsandbytes are multiplied by activations that are rounded to 8 bits as well (steps of absmax /
  127): `L 2^-7` between these and float32.

A relative difference is the root mean square of the difference over all logits, divided by that of the logits (around
their mean at each position).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sft.common.errors import ModelError

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_EIGHT_BIT_ACTIVATIONS = 2.0**-7


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How the logits of two models differ."""

    relative_rms: float
    """Root mean square of the difference, relative to the logits; infinite if a logit is NaN or inf."""
    largest: float
    """Largest absolute difference."""
    num_same_argmax: int
    """Positions at which the most likely token is the same."""
    num_positions: int


@torch.no_grad()
def compute_logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Compute the logits at each position of rows of token ids, one row at a time: float32 `[positions, V]`, on CPU."""
    logits = [model(input_ids=torch.tensor([list(row)], device=model.device)).logits[0].float().cpu() for row in rows]
    return torch.cat(logits)


def compare_logits(found: torch.Tensor, expected: torch.Tensor) -> Difference:
    """Compare logits with those that are expected: both `[positions, V]`."""
    difference = (found - expected).double()
    scale = (expected - expected.mean(dim=-1, keepdim=True)).double().square().mean().sqrt().item()
    rms = difference.square().mean().sqrt().item()
    is_finite = bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())
    return Difference(
        relative_rms=float("inf") if not is_finite else 0.0 if rms == 0 else rms / scale if scale else float("inf"),
        largest=difference.abs().max().item() if is_finite else float("inf"),
        num_same_argmax=int((found.argmax(-1) == expected.argmax(-1)).sum()),
        num_positions=expected.shape[0],
    )


def max_merging_difference(model: Any, *, eight_bit_base: bool = False) -> float:
    """Return the relative difference between merged and unmerged adapters in float32 that rounding explains."""
    layers = model.config.get_text_config().num_hidden_layers + 2
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    widest = max(max(p.shape) for p in model.parameters() if p.dim() == 2 and p.shape[0] != num_embeddings)
    allowed = layers * widest**0.5 * UNIT_ROUNDOFF["float32"]
    return allowed + (layers * _EIGHT_BIT_ACTIVATIONS if eight_bit_base else 0.0)


def max_rounding_difference(model: Any, dtype: str) -> float:
    """Return the relative difference that rounding the weights from float32 to a data type explains."""
    layers = model.config.get_text_config().num_hidden_layers + 2
    return max_merging_difference(model) + (layers * UNIT_ROUNDOFF[dtype] if dtype != "float32" else 0.0)


def check_difference(difference: Difference, allowed: float, description: str) -> None:
    """Check that rounding explains a difference.

    Raises:
        ModelError: if it does not; the message names both numbers.
    """
    if not difference.relative_rms <= allowed:
        raise ModelError(
            f"{description}: the relative difference of the logits is {difference.relative_rms:.2g}, but rounding "
            f"explains at most {allowed:.2g} (the most likely token is the same at {difference.num_same_argmax} of "
            f"{difference.num_positions} positions). Nothing was written."
        )


def hash_weights(model: Any, dtype: torch.dtype) -> dict[str, str]:
    """Return the SHA-256 of each weight in a data type, by name; a shared weight once."""
    return {
        name: hashlib.sha256(
            parameter.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        ).hexdigest()
        for name, parameter in model.named_parameters()
    }


def check_weights(found: dict[str, str], expected: dict[str, str], path: str) -> None:
    """Check that a file contains exactly the weights that were written.

    Raises:
        ModelError: if it does not; the message names one weight that differs.
    """
    differing = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if differing:
        raise ModelError(
            f"{path}: {len(differing)} of {len(expected)} weights differ from those that were written, for example "
            f"{differing[0]}: a disk or memory fault. Nothing was written."
        )
