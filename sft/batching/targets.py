"""The tokens of a micro-batch that are trained, and how much each counts in the loss.

A row may have `weights`, float32 `[T]`: the share of each of its tokens. Without them every supervised token counts
once. Labels say which tokens are supervised, those of answers; tokens with a weight and no label are trained too, and
are in no count or metric of answers.

Shapes: `T` tokens of a row, `S` targets of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sft.common.data_records import IGNORED

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeighedTargets:
    """Targets with their weights, in plain numbers and as tensors of a batch."""

    tensors: dict[str, torch.Tensor]
    """`target_weights` float32 `[S]`, if one of them is not 1; `is_answer` bool `[S]` too, if one is no supervised
    token. Without them every target is a supervised token that counts once."""
    num_supervised: int
    weight: float
    """Sum of the weights."""
    num_weighted_rows: int
    """Rows with a weight that is not 1, or with a target that is not supervised."""


def target_positions(row: Row) -> np.ndarray:
    """The positions of a row that predict a trained token, int64. Position `t` predicts token `t + 1`."""
    weights = row.get("weights")
    return np.flatnonzero(np.asarray(row["labels"])[1:] != IGNORED if weights is None else weights[1:] > 0)


def target_tokens(row: Row, positions: np.ndarray) -> np.ndarray:
    """The tokens that these positions of a row predict."""
    tokens: np.ndarray = row["labels" if row.get("weights") is None else "input_ids"][1:][positions]
    return tokens


def weigh_targets(rows: Sequence[Row], positions: Sequence[np.ndarray]) -> WeighedTargets:
    """The weights of the targets of rows.

    Args:
        rows: the rows.
        positions: of each row, as `target_positions` returns them.
    """
    num_targets = sum(map(len, positions))
    if all(row.get("weights") is None for row in rows):
        return WeighedTargets(tensors={}, num_supervised=num_targets, weight=float(num_targets), num_weighted_rows=0)
    weights, is_answer, num_weighted_rows = [], [], 0
    for row, own in zip(rows, positions, strict=True):
        given = row.get("weights")
        weights.append(np.ones(len(own), np.float32) if given is None else given[1:][own])
        is_answer.append(row["labels"][1:][own] != IGNORED)
        num_weighted_rows += bool((weights[-1] != 1).any() or not is_answer[-1].all())
    of_all, answers = np.concatenate(weights), np.concatenate(is_answer)
    tensors = {}
    if num_weighted_rows:
        tensors["target_weights"] = torch.from_numpy(of_all)
        if not answers.all():
            tensors["is_answer"] = torch.from_numpy(answers)
    return WeighedTargets(
        tensors=tensors,
        num_supervised=int(answers.sum()),
        weight=float(of_all.sum(dtype=np.float64)),
        num_weighted_rows=num_weighted_rows,
    )
