"""The record of a row that is tokenized already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # floor 0 imports no library
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GivenTokens:
    """The tokens of a row that is tokenized already."""

    input_ids: "np.ndarray"
    """int32 `[T]`."""
    trained: "np.ndarray"
    """bool `[T]`."""
    has_padding: bool = False
    """Whether padding was removed, which `attention_mask` marks."""
