"""Dimensions of models. The benchmarks use them too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The dimensions of a model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    vocab_size: int = 512
    is_tied: bool = True
    """Whether the output layer is the embedding."""


SHAPES = {
    "toy": Shape(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_key_value_heads=2),
    "100m": Shape(hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, num_key_value_heads=4),
    # As in Llama 3.2 1B and Llama 3.1 8B.
    "1.2b": Shape(
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "8b": Shape(
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        is_tied=False,
    ),
}
