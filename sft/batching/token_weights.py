"""How many trained rows each computed token stands for: means over tokens are then the same for every layout.

Shapes: `B` rows, `N` computed tokens of the layout, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def token_weights(
    starts: np.ndarray,
    lengths: np.ndarray,
    is_trained: np.ndarray,
    num_computed: int,
    *,
    owners: Sequence[int] = (),
    borrowed: Sequence[int] = (),
) -> torch.Tensor:
    """Float32 `[N]`: 1 for a token of a trained row, 0 for padding and rows without a supervised token.

    A leading token that rows share counts once for each of them. The weights add up to the tokens of the trained rows.

    Args:
        starts: of each row in the layout, `[B]`; of a row that borrows tokens, where it would start with them.
        lengths: tokens of each row, `[B]`.
        is_trained: bool `[B]`, whether a row has a supervised token.
        num_computed: `N`.
        owners, borrowed: as `sft.batching.prefixes.find_owners` returns them; empty if nothing is shared.
    """
    weights = np.zeros(num_computed, dtype=np.float32)
    for index in np.flatnonzero(is_trained).tolist():
        shared = borrowed[index] if len(borrowed) else 0
        weights[starts[index] + shared : starts[index] + lengths[index]] += 1
        if shared:
            of_owner = starts[owners[index]]
            weights[of_owner : of_owner + shared] += 1
    return torch.from_numpy(weights)
