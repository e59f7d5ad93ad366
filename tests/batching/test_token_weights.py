"""Each token counts once for every trained row that has it, in every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.batching.layout import FlatCollator, PaddedCollator
from sft.common.data_records import IGNORED

PREFIX = list(range(10, 20))
FILLER = {"input_ids": np.array([7, 8, 9]), "labels": np.full(3, IGNORED)}


def row(ids):
    labels = np.array(ids)
    labels[:-1] = IGNORED
    return {"input_ids": np.array(ids), "labels": labels}


ROWS = [row([*PREFIX, 1, 2]), FILLER, row([*PREFIX, 3]), row([5, 6, 7, 8])]


def counts_by_token(batch):
    """How often each token id counts."""
    found = torch.zeros(30).index_add_(0, batch["input_ids"].flatten(), batch["token_weights"])
    return found.tolist()


@pytest.mark.parametrize(
    "collator",
    [
        PaddedCollator(29, weighs_tokens=True),
        FlatCollator(29, weighs_tokens=True),
        FlatCollator(29, weighs_tokens=True, shares_prefixes=True),
        FlatCollator(29, weighs_tokens=True, fixed_tokens=64, max_seq_length=16),
    ],
    ids=["padded", "packed", "shared", "fixed"],
)
def test_tokens_of_trained_rows_count_once_for_each_row(collator):
    batch = collator(ROWS)
    expected = torch.zeros(30)
    for each in (ROWS[0], ROWS[2], ROWS[3]):
        expected.index_add_(0, torch.from_numpy(each["input_ids"]), torch.ones(len(each["input_ids"])))
    assert counts_by_token(batch) == expected.tolist()
    assert batch["token_weights"].shape == (batch["input_ids"].numel(),)
    assert float(batch["token_weights"].sum()) == batch["counts"]["tokens"]
    assert "token_weights" not in PaddedCollator(29)(ROWS)
