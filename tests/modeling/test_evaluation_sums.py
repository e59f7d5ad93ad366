"""Evaluation metrics from sums over batches."""

from __future__ import annotations

import math

import pytest
import torch

from sft.modeling.evaluation_sums import EvaluationSums
from sft.modeling.supervised_loss import losses_and_hits


def batch(positions=14, vocabulary=11, seed=0):
    """Scores `[S, V]` of supervised positions, and the tokens to predict."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, vocabulary, generator=generator), torch.randint(
        0, vocabulary, (positions,), generator=generator
    )


def as_batch(rows):
    """The part of a batch that is read: without weights."""
    counts = {"rows": len(rows.unique()), "supervised": len(rows), "weight": float(len(rows)), "weighted_rows": 0}
    return {"target_rows": rows, "counts": counts}


def test_evaluation_sums_do_not_depend_on_batches():
    scores, targets = batch(positions=40)
    losses, hits = losses_and_hits(iter([scores]), targets)
    rows = torch.arange(40) // 4
    whole, parts = EvaluationSums("cpu"), EvaluationSums("cpu")
    whole.add(losses, hits, as_batch(rows))
    for start, end in ((0, 1), (1, 8), (8, 10)):
        part = slice(4 * start, 4 * end)
        parts.add(losses[part], hits[part], as_batch(rows[part] - start))
    assert parts.result().loss == pytest.approx(whole.result().loss, abs=1e-9)
    assert parts.result().token_accuracy == whole.result().token_accuracy
    assert parts.result().sequence_accuracy == whole.result().sequence_accuracy


def test_evaluation_sums_count_tokens_and_sequences():
    sums = EvaluationSums("cpu")
    # Row 1 has no supervised token and does not count; of row 2 one token is wrong.
    hits = torch.tensor([True, True, True, True, False])
    losses = torch.tensor([0.5, 0.5, 0.0, 0.0, 4.0])
    sums.add(losses, hits, as_batch(torch.tensor([0, 0, 2, 2, 2])))
    sums.add(losses[:0], hits[:0], as_batch(torch.zeros(0, dtype=torch.long)))
    result = sums.result()
    assert result.token_accuracy == 4 / 5
    assert result.sequence_accuracy == 1 / 2
    assert sums.num_sequences == 2
    assert result.loss == 1.0
    assert result.perplexity == pytest.approx(math.e)
