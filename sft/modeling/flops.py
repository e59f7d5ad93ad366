"""Floating-point operations of training, by the formula that model FLOPs utilization (MFU) is usually based on."""

from __future__ import annotations

from sft.common.run_records import ModelFootprint


def training_flops(footprint: ModelFootprint, *, tokens: int, squares: int) -> int:
    """Operations of one forward and backward pass; recomputed activations and skipped scores do not change it.

    Two operations for each weight and token forward, twice that backward (Kaplan et al., 2020, section 2.1); frozen
    weights need no gradient, which saves a third. Causal attention over a document of `n` tokens adds
    `6 * layers * width * n**2` (Chowdhery et al., 2022, PaLM, appendix B, halved for the mask). The input embedding is
    a lookup; the output layer counts in full, and leading tokens that are computed once for several documents count for
    each of them: the result measures what was achieved, not what was computed.

    Args:
        footprint: the dimensions of the model.
        tokens: tokens of all documents.
        squares: sum of the squared lengths of the documents.
    """
    multiplied = footprint.num_parameters - footprint.num_lookup_parameters
    trained = footprint.num_trainable_parameters
    if trained < footprint.num_parameters:  # adapters on frozen weights
        for_weights = 4 * (multiplied - trained) + 6 * trained
    else:
        for_weights = 6 * multiplied
    return for_weights * tokens + 6 * footprint.num_layers * footprint.hidden_size * squares
