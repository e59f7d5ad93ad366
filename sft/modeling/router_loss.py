"""The load-balancing loss of a mixture of experts, as sums over tokens: the same for every split of a step.

The loss of one forward pass in transformers (Fedus et al., 2022, Switch Transformers, equations 4 to 6) is

    E * sum over experts e of F_e * P_e

where `F_e` is the share of tokens that are routed to expert `e` (each token counts for its `k` experts), and `P_e` the
mean of the router's probability of it, both over all tokens and layers. Computed by micro-batch, it depends on their
size: it is a product of two means. Here both are means over the tokens of the global batch. `F_e` has no gradient, so
once it is known, the loss is a sum over tokens.

Shapes: `N` tokens of a micro-batch, `E` experts, `L` layers with experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sft.common.device_errors import reraise_device_error
from sft.modeling.experts import expert_counts
from sft.modeling.few_tokens import call_on, few_tokens

OUTPUT: dict[str, Any] = {"output_router_logits": True}
"""The argument with which transformers returns the router's scores."""
_NUM_TOKENS = 16
"""As in `extra_loss`, where this loss explains a part of the model's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterScores:
    """What a model's own load-balancing loss is made of, as tried."""

    num_experts: int
    top_k: int
    """Experts of a token."""
    value: float
    """The loss of the trial, without its coefficient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterLoss:
    """The load-balancing loss that a run trains."""

    coefficient: float
    num_experts: int
    top_k: int


@dataclass(frozen=True, slots=True)
class RouterSums:
    """Sums over tokens and layers, from which the loss of any set of micro-batches follows by addition."""

    counts: torch.Tensor
    """How many tokens each expert was given, float32 `[E]`; no gradient."""
    probabilities: torch.Tensor
    """Of each expert, float32 `[E]`; with the gradient of the router."""
    tokens: torch.Tensor
    """Tokens of all layers: `L` times those of the rows; a scalar."""


def router_sums(router_logits: Sequence[torch.Tensor], weights: torch.Tensor, top_k: int) -> RouterSums:
    """Sums over the tokens of a micro-batch.

    Args:
        router_logits: of each layer, `[N, E]` or `[B, T, E]`.
        weights: of each token, float32 `[N]` (see `sft.batching.token_weights`).
        top_k: experts of a token.
    """
    counts: list[torch.Tensor] = []
    probabilities: list[torch.Tensor] = []
    # Without autocast, which would multiply in 16 bits.
    with torch.autocast(weights.device.type, enabled=False):
        for logits in router_logits:
            scores = logits.reshape(-1, logits.shape[-1]).float()
            chosen = scores.detach().topk(top_k, dim=-1).indices
            # Sums of whole numbers: exact in any order.
            counts.append(torch.mv(torch.zeros_like(scores).scatter_(1, chosen, 1.0).t(), weights))
            probabilities.append(torch.mv(scores.softmax(dim=-1).t(), weights))
    return RouterSums(
        counts=torch.stack(counts).sum(dim=0),
        probabilities=torch.stack(probabilities).sum(dim=0),
        tokens=weights.sum() * len(counts),
    )


def load_balance(counts: torch.Tensor, probabilities: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The load-balancing loss of sums over all tokens, a scalar; 0 without tokens.

    Args:
        counts, probabilities, tokens: as in `RouterSums`.
    """
    of_all = tokens.clamp(min=1)
    return len(counts) * (counts / of_all * (probabilities / of_all)).sum()


def try_router_scores(model: Any) -> RouterScores | None:
    """Whether the sums of this module give the model's own loss, tried on a few tokens; None if not.

    Args:
        model: on the device and in the types of training, under autocast if training uses it.
    """
    if not expert_counts(model):
        return None
    was_training = model.training
    model.eval()
    try:
        ids = torch.tensor([few_tokens(model, _NUM_TOKENS)], device=model.device)
        with torch.no_grad():
            output = call_on(model, ids, **OUTPUT)
        expected, logits = float(output.aux_loss), output.router_logits
        num_experts = logits[0].shape[-1]
        weights = torch.ones(ids.numel(), device=ids.device)
        found = []
        for top_k in range(1, num_experts + 1):
            sums = router_sums(logits, weights, top_k)
            found.append(float(load_balance(sums.counts, sums.probabilities, sums.tokens)))
    except Exception as error:  # no such argument, output, or loss
        reraise_device_error(error)
        return None
    finally:
        model.train(was_training)
    best = min(range(num_experts), key=lambda index: abs(found[index] - expected))
    # The model may compute its own in 16 bits.
    tolerance = 1e-4 if all(each.dtype is torch.float32 for each in logits) else 2e-2
    if not abs(found[best] - expected) <= tolerance * abs(expected):
        return None
    return RouterScores(num_experts=num_experts, top_k=best + 1, value=expected)
