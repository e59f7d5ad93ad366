"""Sums over supervised tokens and sequences, from which evaluation metrics are computed.

Shapes: `S` supervised positions of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sft.common.run_records import EvaluationResult


class EvaluationSums:
    """Sums over batches, in float64 on the device; memory does not grow with the data.

    A sequence is a row (a document); it is correct if all of its supervised tokens are. A row without any does not
    count.
    """

    def __init__(self, device: torch.device | str):
        # loss, tokens, correct tokens, sequences, correct sequences; weighted loss, weights, weighted rows
        self._sums = torch.zeros(8, dtype=torch.float64, device=_with_float64(device))

    @torch.no_grad()
    def add(self, losses: torch.Tensor, hits: torch.Tensor, batch: Mapping[str, Any]) -> None:
        """Add a batch.

        Args:
            losses: float32 `[S]`, each target's cross-entropy.
            hits: bool `[S]`, whether the target is the most likely token.
            batch: as `sft.batching.layout` makes it: `target_rows`, `counts`, and where targets count unequally
                `target_weights` and `is_answer`.
        """
        rows, num_rows, weights = batch["target_rows"], batch["counts"]["rows"], batch.get("target_weights")
        losses, wrong_targets = losses.to(self._sums.dtype), ~hits
        weighted_loss = None if weights is None else (losses * weights).sum()
        is_answer = batch.get("is_answer")
        if is_answer is not None:
            losses, hits, wrong_targets = losses * is_answer, hits & is_answer, wrong_targets & is_answer
        wrong = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
        # Rows renumbered without those that have no target, which leaves `num_rows` of them.
        number = torch.zeros_like(rows)
        if len(rows):
            number[1:] = (rows[1:] != rows[:-1]).cumsum(0)
        wrong.index_add_(0, number, wrong_targets.long())
        correct_rows = (wrong[:num_rows] == 0).sum()
        # A token's loss in float32, their sum in float64: the total does not depend on how rows share batches.
        sums = [losses.sum(), hits.sum(), correct_rows]
        loss, correct, correct_rows = (value.to(self._sums) for value in sums)
        weighted_loss = loss if weighted_loss is None else weighted_loss.to(self._sums)
        counts = (batch["counts"][name] for name in ("supervised", "rows", "weight", "weighted_rows"))
        tokens, rows_counted, weight, weighted_rows = (loss.new_full((), float(count)) for count in counts)
        self._sums += torch.stack(
            [loss, tokens, correct, rows_counted, correct_rows, weighted_loss, weight, weighted_rows]
        )

    def merge(self, other: EvaluationSums) -> None:
        """Add the sums of other batches."""
        self._sums += other._sums

    @property
    def tensor(self) -> torch.Tensor:
        """The sums, to be reduced over processes in place."""
        return self._sums

    @property
    def num_sequences(self) -> int:
        return int(self._sums[3])

    def result(self) -> EvaluationResult:
        """The means. Perplexity is the exponential of the loss without weights (infinite where that overflows)."""
        loss_sum, tokens, correct, sequences, correct_sequences, weighted_loss, weight, weighted = self._sums.tolist()
        loss = loss_sum / tokens if tokens else math.nan
        return EvaluationResult(
            loss=weighted_loss / weight if weighted else loss,
            loss_unweighted=loss if weighted else None,
            perplexity=perplexity_of(loss),
            token_accuracy=correct / tokens if tokens else math.nan,
            sequence_accuracy=correct_sequences / sequences if sequences else math.nan,
        )


def perplexity_of(loss: float) -> float:
    """The exponential of a loss in nats per token; infinite where that overflows."""
    return math.inf if loss >= 700 else math.exp(loss)


def _with_float64(device: torch.device | str) -> torch.device | str:
    """The device, but the CPU for Apple's GPUs, which have no float64."""
    return "cpu" if str(device).startswith("mps") else device
