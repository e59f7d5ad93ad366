"""Memory of the kernels that oneDNN generates on CPU in 16 bits: some for each shape that a run computes.

They stay in two caches, oneDNN's and that of torch's bindings, so a process grows as long as numbers of tokens or
lengths of rows occur that did not occur before. The figures were measured with float32 weights under autocast, on a CPU
with AMX (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import numpy as np

_KERNEL_BYTES = 3 * 2**18
"""Of each product, besides what grows with the layer."""
_BYTES_OF_A_WEIGHT = 3
"""Of the three products of a linear layer together, for each of its weights: 1.7 to 3.7 were measured."""
_PRODUCTS_OF_A_BATCH = 12
"""Forward, and backward for input and weights, of the four shapes of linear layers that a decoder has."""
_PRODUCTS_OF_A_ROW = 6
"""In attention; fitted to the sample configuration, as is `_MOST_KERNELS`."""
_MOST_KERNELS = 1400
_MOST_BATCHES = 2000
"""Micro-batches that are drawn here; later ones have hardly any new shape."""


def kernel_bytes(lengths: np.ndarray, rows: int, num_batches: int, *, hidden_size: int, intermediate_size: int) -> int:
    """What kernels take at the end of a run in 16 bits on CPU.

    Args:
        lengths: of the training rows, in tokens.
        rows: of a micro-batch.
        num_batches: micro-batches of the run.
        hidden_size: of the model.
        intermediate_size: of its feed-forward block.
    """
    count = min(num_batches, _MOST_BATCHES)
    generator = np.random.default_rng(0)  # any order: the counts hardly depend on it
    epochs = [generator.permutation(lengths) for _ in range(-(-count * rows // len(lengths)))]
    drawn = np.concatenate(epochs)[: count * rows].reshape(count, rows)
    of_batches = min(_PRODUCTS_OF_A_BATCH * len(np.unique(drawn.sum(axis=1))), _MOST_KERNELS)
    of_rows = _PRODUCTS_OF_A_ROW * len(np.unique(drawn))
    weights = 2 * hidden_size * (hidden_size + intermediate_size)  # one layer of each shape
    grown = of_batches // _PRODUCTS_OF_A_BATCH * _BYTES_OF_A_WEIGHT * weights
    return min(of_batches + of_rows, _MOST_KERNELS) * _KERNEL_BYTES + grown
