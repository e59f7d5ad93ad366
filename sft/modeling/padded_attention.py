"""Attention for rows that are padded on the right: causal, without a mask for the padding.

A token of a row attends to earlier tokens alone, and padding is later than all of them, so masking it changes nothing.
transformers masks it where there is any, and to see that, reads the mask back from the device in each forward pass.
Without the mask nothing is read, and torch may use its kernels for causal attention, which take none.

Used through transformers' `AttentionInterface` and `AttentionMaskInterface`, in training and evaluation only, since
generation pads on the left. Windows and chunks are masked as in transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sft_padded"


def register_padded_attention() -> None:
    """Makes transformers know the attention by its name."""
    AttentionInterface.register(NAME, sdpa_attention_forward)
    AttentionMaskInterface.register(NAME, mask_without_padding)


def mask_without_padding(
    *, attention_mask: torch.Tensor | None = None, allow_is_causal_skip: bool = True, **others: Any
) -> torch.Tensor | None:
    """The mask of a layer's attention; transformers calls this once for each kind of layer, and defines the parameters.

    Args:
        attention_mask: bool `[B, T]`, False in padding.
        allow_is_causal_skip: whether the mask is plainly causal, perhaps within a window or chunk. Others are masked as
            they would be without us, padding included.
        others: sizes, window and mask function.

    Returns:
        bool `[B, 1, T, T]`; None for causal attention without a mask.
    """
    kept = None if allow_is_causal_skip else attention_mask
    return sdpa_mask(attention_mask=kept, allow_is_causal_skip=allow_is_causal_skip, **others)
