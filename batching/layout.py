"""Rows to the tensors of a micro-batch. The layout decides nothing: what is trained stands in the rows.

Shapes: `B` rows, `T` tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from sft_types import RowDataset

IGNORED = -100


class SupervisedRows(TorchDataset):
    """A dataset's rows, where a negative index `-row-1` is that row with every label ignored (a filler)."""

    def __init__(self, dataset: RowDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        if index >= 0:
            return self._dataset[index]
        row = self._dataset[-index - 1]
        return {"input_ids": row["input_ids"], "labels": np.full_like(row["labels"], IGNORED)}


class PaddedCollator:
    """Lays rows one under another, padded at the right to the longest.

    Gives `input_ids`, `attention_mask` and `shift_labels`, each int64 `[B, T]`. `shift_labels[b, t]` is the token that
    position `t` has to predict, or -100: already shifted, so that it lies over the logits as it is.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        shift_labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids[index, :length] = row["input_ids"]
            attention_mask[index, :length] = 1
            shift_labels[index, : length - 1] = row["labels"][1:]
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            "shift_labels": torch.from_numpy(shift_labels),
        }
