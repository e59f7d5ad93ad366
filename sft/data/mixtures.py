"""Mixtures of sources: how often an epoch takes the rows of each source."""

from __future__ import annotations

import numpy as np

from sft.data.prepared import Split
from sft.data.store import PreparedRows


def rows_of_epoch(train: Split, seed: int) -> PreparedRows:
    """The rows of one epoch: each row as often as the `weight` of its source, a fractional rest chosen by seed."""
    if all(source.weight == 1 for source in train.prepared):
        return train.rows
    source_of_row = train.rows.source_indices()
    taken: list[np.ndarray] = []
    for number, source in enumerate(train.prepared):
        own = np.flatnonzero(source_of_row == number)
        repeats = int(source.weight)
        num_extra = round((source.weight - repeats) * len(own))
        extra = np.random.default_rng([seed, number]).permutation(len(own))[:num_extra]
        taken += [own] * repeats + [own[np.sort(extra)]]
    return train.rows.select(np.concatenate(taken))
