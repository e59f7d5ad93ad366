"""Whether what was exported is what was trained: logits side by side, and how far rounding may part them.

Let `u` be the unit roundoff of a type (half the distance from 1 to the next number: 2^-24 in float32, 2^-11 in float16,
2^-8 in bfloat16; Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.1) and `L` the layers, with
one more for the embedding and one for the output.

- Sums of `K` products in another order differ by about `sqrt(K) u` of their size, errors being of either sign (section
  2.8). Merged and unmerged in float32 are the same sums in another order; taking each layer to add as much again gives
  `L sqrt(K) u`, with K the widest layer's input.
- Rounding a layer's weights to a type changes its output by at most about `u` of its size, and as errors of either sign
  do not add up with K, each layer adds `u` at most: `L u`.
- 8-bit weights of bitsandbytes are multiplied by activations that are rounded to 8 bits as well (absmax / 127 a step):
  `L 2^-7` between these and their values in float32.

Differences are the root mean square over all logits, as a share of that of the logits (about their mean at a position).
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
    """How two models' logits differ."""

    share: float
    """Root mean square of the difference, as a share of the logits' own; infinite where a logit is no finite number."""
    largest: float
    """The largest of them."""
    same_choice: int
    """Positions at which the likeliest token is the same."""
    positions: int


@torch.no_grad()
def logits_of(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits at every position of rows of token ids, each row by itself: float32 `[positions, V]`, on the CPU."""
    found = [model(input_ids=torch.tensor([list(row)], device=model.device)).logits[0].float().cpu() for row in rows]
    return torch.cat(found)


def compare_logits(found: torch.Tensor, expected: torch.Tensor) -> Difference:
    """How logits differ from those that are expected: both `[positions, V]`."""
    difference = (found - expected).double()
    size = (expected - expected.mean(dim=-1, keepdim=True)).double().square().mean().sqrt().item()
    rms = difference.square().mean().sqrt().item()
    is_finite = bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())
    return Difference(
        share=float("inf") if not is_finite else 0.0 if rms == 0 else rms / size if size else float("inf"),
        largest=difference.abs().max().item() if is_finite else float("inf"),
        same_choice=int((found.argmax(-1) == expected.argmax(-1)).sum()),
        positions=expected.shape[0],
    )


def allowed_by_order(model: Any, *, eight_bit_base: bool = False) -> float:
    """How far merged and unmerged may be apart in float32, as a share of the logits."""
    layers = model.config.get_text_config().num_hidden_layers + 2
    widest = max(max(p.shape) for p in model.parameters() if p.dim() == 2 and p.shape[0] != _vocabulary(model))
    allowed = layers * widest**0.5 * UNIT_ROUNDOFF["float32"]
    return allowed + (layers * _EIGHT_BIT_ACTIVATIONS if eight_bit_base else 0.0)


def allowed_by_rounding(model: Any, dtype: str) -> float:
    """How far a model whose weights are rounded to a type may be from one in float32, as a share of the logits."""
    layers = model.config.get_text_config().num_hidden_layers + 2
    return allowed_by_order(model) + (layers * UNIT_ROUNDOFF[dtype] if dtype != "float32" else 0.0)


def check_difference(difference: Difference, allowed: float, what: str) -> None:
    """Refuses a difference that is not explained.

    Raises:
        ModelError: naming both.
    """
    if not difference.share <= allowed:
        raise ModelError(
            f"{what}: its logits differ by {difference.share:.2g} of their size, and rounding explains {allowed:.2g} "
            f"(the likeliest token is the same at {difference.same_choice} of {difference.positions} positions). "
            "Nothing was written."
        )


def fingerprints(model: Any, dtype: torch.dtype) -> dict[str, str]:
    """A digest of each weight in a type, by name; a shared one once."""
    return {
        name: hashlib.sha256(
            parameter.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
        ).hexdigest()
        for name, parameter in model.named_parameters()
    }


def check_weights(found: dict[str, str], expected: dict[str, str], place: str) -> None:
    """Refuses a file that does not hold the weights that were written, to the bit.

    Raises:
        ModelError: naming one that differs.
    """
    differing = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    if differing:
        raise ModelError(
            f"{place}: read back, {len(differing)} of {len(expected)} weights are not what was written, {differing[0]} "
            "among them: the disk or the memory is at fault. Nothing was written."
        )


def _vocabulary(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]
