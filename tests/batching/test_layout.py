"""Rows to the tensors of a micro-batch: padded, or packed in one row."""

from __future__ import annotations

import numpy as np
import torch

from sft.batching.layout import FlatCollator, PaddedCollator, SupervisedRows
from sft.batching.order import filler


def test_supervised_rows_ignores_every_label_of_a_filler():
    lists = [([1, 2], [-100, 2]), ([3, 4, 5], [-100, 4, 5])]
    rows = SupervisedRows([{"input_ids": np.array(ids), "labels": np.array(labels)} for ids, labels in lists])
    assert rows[1]["labels"].tolist() == [-100, 4, 5]
    assert rows[filler(1)]["input_ids"].tolist() == [3, 4, 5]
    assert rows[filler(1)]["labels"].tolist() == [-100, -100, -100]


ROWS = [
    {"input_ids": np.array([5, 6, 7]), "labels": np.array([-100, 6, 7])},
    {"input_ids": np.array([8, 9]), "labels": np.array([-100, 9])},
    # A label on the first token is ignored: no token before it could predict it.
    {"input_ids": np.array([4, 3]), "labels": np.array([4, -100])},
]
COUNTS = {"rows": 2, "tokens": 5, "supervised": 3, "squares": 13, "weight": 3.0, "weighted_rows": 0}


def test_padded_collator_pads_on_the_right_and_finds_supervised_positions():
    batch = PaddedCollator(pad_token_id=9)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9], [4, 3, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    # The pad token is a token of the answer too: only the real one is a target.
    assert batch["label_positions"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [6, 7, 9]
    assert batch["target_rows"].tolist() == [0, 0, 1]
    assert batch["counts"] == {**COUNTS, "computed": 9}


def test_flat_collator_packs_rows_in_one_row():
    batch = FlatCollator(pad_token_id=9)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 7]
    assert batch["cu_seq_lens_q"].dtype is torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert "attention_mask" not in batch
    assert batch["label_positions"].tolist() == [0, 1, 3]
    assert batch["targets"].tolist() == [6, 7, 9]
    assert batch["target_rows"].tolist() == [0, 0, 1]
    assert batch["counts"] == {**COUNTS, "computed": 7}


def test_flat_collator_fills_a_batch_to_a_fixed_size():
    batch = FlatCollator(pad_token_id=1, fixed_tokens=12, max_seq_length=3)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4, 3, 1, 1, 1, 1, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 7, 10, 12, *[12] * 10]
    assert batch["max_length_q"] == 3
    assert batch["counts"] == {**COUNTS, "computed": 12}
    exact = FlatCollator(pad_token_id=1, fixed_tokens=7, max_seq_length=3)(ROWS)
    assert exact["cu_seq_lens_q"].tolist() == [0, 3, 5, 7, *[7] * 12]
    assert len(FlatCollator(1, fixed_tokens=70, max_seq_length=3)(ROWS * 10)["cu_seq_lens_q"]) == 32
