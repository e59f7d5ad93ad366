"""Records of weights in the loss that pass between packages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """The weights in the loss of a row's tokens: those of its messages times that of the row."""

    spans: tuple[float, ...]
    """Of the tokens of each trained span; above 0."""
    prompt: float = 0.0
    """Of all other tokens."""
    excluded: tuple[tuple[int, int], ...] = ()
    """Character spans `[start, end)` whose tokens are never trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightReport:
    """Weights in the loss of the tokens of a split."""

    rows: int
    """Used rows with a supervised token whose weight is not 1."""
    tokens: int
    """These tokens."""
    lowest: float
    """Of the supervised tokens of all used rows, as is the next one."""
    highest: float
    prompt_tokens: int
    """Tokens outside of answers that are trained (`prompt_loss_weight`)."""
