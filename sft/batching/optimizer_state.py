"""Bytes of state that an optimizer keeps, by the name that `optim` takes."""

from __future__ import annotations

_STATES = (
    # In 16 bits: one moment in 16 bits, the other in 32, and the lower half of the weights.
    ("bf16_split", 4.0),
    ("bf16_stochastic", 3.0),
    ("ademamix", 3.0),
    ("grokadamw", 3.0),
    ("schedule_free_sgd", 1.0),
    ("sgd", 0.0),
    ("lomo", 0.0),
    # A row and a column of sums for each matrix.
    ("adafactor", 0.01),
    ("lion", 1.0),
    ("rmsprop", 1.0),
    ("adagrad", 1.0),
)
"""Substring of an optimizer's name -> values kept per trained parameter. Any other counts as AdamW: two."""


def optimizer_bytes(optimizer: str, element_bytes: int = 4) -> float:
    """Bytes of optimizer state per trained parameter of `element_bytes`.

    AdamW: two moments of the parameter's type (Loshchilov & Hutter, 2019). In 8 bits one byte each; the scales of the
    blocks are not counted (Dettmers et al., 2022). Plain SGD, as `optim: sgd` sets it up, keeps nothing.
    """
    states = next((count for part, count in _STATES if part in optimizer), 2.0)
    if "8bit" in optimizer:
        return states
    return states * (0.5 if "4bit" in optimizer else element_bytes)
