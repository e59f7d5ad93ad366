"""Cross-entropy over supervised tokens, as sums: means are made once, over the whole global batch.

Shapes: `B` rows, `T` tokens, `V` vocabulary, `S` supervised positions of the batch.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from sft_types import EvaluationResult

IGNORED = -100


def supervised_loss_sum(
    logits: torch.Tensor, shift_labels: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Sum of the cross-entropies of the supervised tokens, in nats; float32 scalar.

    Args:
        logits: `[B, T, V]`, any float type; only the `S` supervised positions are brought to float32.
        shift_labels: `[B, T]`, the token each position has to predict, or -100.
        label_smoothing: share of the target spread over the vocabulary (Szegedy et al., 2016, section 7).
    """
    supervised = shift_labels != IGNORED
    return functional.cross_entropy(
        logits[supervised].float(), shift_labels[supervised], reduction="sum", label_smoothing=label_smoothing
    )


class EvaluationSums:
    """Sums over batches, in float64 on the device; memory does not grow with the data.

    A sequence is a row; it is right if every one of its supervised tokens is. A row with none does not count.
    """

    def __init__(self, device: torch.device | str):
        # loss, tokens, right tokens, sequences, right sequences
        self._sums = torch.zeros(5, dtype=torch.float64, device=_with_float64(device))

    @torch.no_grad()
    def add(self, logits: torch.Tensor, shift_labels: torch.Tensor) -> None:
        """Adds a batch: logits `[B, T, V]`, labels `[B, T]` as for `supervised_loss_sum`."""
        supervised = shift_labels != IGNORED
        at_labels, targets = logits[supervised], shift_labels[supervised]
        # A token's loss in float32, their sum in float64: the total does not depend on how rows share batches.
        losses = functional.cross_entropy(at_labels.float(), targets, reduction="none")
        right = at_labels.argmax(dim=-1) == targets
        wrong_in_row = torch.zeros_like(supervised)
        wrong_in_row[supervised] = ~right
        counted = supervised.any(dim=1)
        batch = torch.stack(
            [
                losses.to(self._sums.dtype).sum(),
                supervised.sum(),
                right.sum(),
                counted.sum(),
                (counted & ~wrong_in_row.any(dim=1)).sum(),
            ]
        )
        self._sums += batch.to(self._sums)

    @property
    def tensor(self) -> torch.Tensor:
        """The five sums, to be added up over processes in place."""
        return self._sums

    @property
    def num_sequences(self) -> int:
        return int(self._sums[3])

    def result(self) -> EvaluationResult:
        """The means. Perplexity is the exponential of the loss (infinite where that overflows)."""
        loss_sum, tokens, right, sequences, right_sequences = self._sums.tolist()
        loss = loss_sum / tokens if tokens else math.nan
        return EvaluationResult(
            loss=loss,
            perplexity=math.exp(loss) if loss < 700 else math.inf,
            token_accuracy=right / tokens if tokens else math.nan,
            sequence_accuracy=right_sequences / sequences if sequences else math.nan,
        )


def _with_float64(device: torch.device | str) -> torch.device | str:
    """Apple's GPUs have no float64: there the sums live on the CPU."""
    return "cpu" if str(device).startswith("mps") else device
