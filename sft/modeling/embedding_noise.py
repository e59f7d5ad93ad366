"""NEFTune: uniform noise on the embeddings of a training row (Jain et al. 2023), `alpha / sqrt(L * d)` at most.

transformers takes for `L` the tokens of the whole batch's rows, padding included, so that a row's noise would depend on
the rows beside it, and be too small in a packed one. Here it is the length of the document itself, in any layout.

Shapes: `B` rows, `T` tokens, `N` tokens of a packed row, `L` of a document, `d` size of an embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sft.modeling.few_tokens import base_of

logger = logging.getLogger("sft.model")


def add_embedding_noise(model: Any, alpha: float | None) -> None:
    """Add hooks that add the noise in training mode; logs a line.

    Args:
        model: with or without adapters.
        alpha: the scale; None or 0 for no noise.
    """
    if not alpha:
        return
    noise = _Noise(alpha)
    base_of(model).register_forward_pre_hook(noise.note, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(noise.add)
    logger.info("neftune_noise_alpha: the noise of each row is scaled by its own length, whatever its batch.")


class _Noise:
    def __init__(self, alpha: float):
        self._alpha = alpha
        self._lengths: torch.Tensor | None = None

    def note(self, _: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keeps the length of the document of each token, `[B, T]` or `[1, N]`."""
        boundaries, mask = kwargs.get("cu_seq_lens_q"), kwargs.get("attention_mask")
        self._lengths = None
        if boundaries is not None:
            lengths = boundaries.diff()
            # With the size nothing is read back from a GPU.
            self._lengths = lengths.repeat_interleave(lengths, output_size=kwargs["input_ids"].shape[1])[None]
        elif mask is not None:
            self._lengths = mask.sum(dim=1, keepdim=True).expand(mask.shape)

    def add(self, module: nn.Module, _: Any, embedded: torch.Tensor) -> torch.Tensor:
        """The embeddings `[B, T, d]` with their noise."""
        if not module.training:
            return embedded
        lengths = embedded.shape[1] if self._lengths is None else self._lengths.clamp(min=1)[..., None]
        scale = self._alpha * torch.as_tensor(lengths * embedded.shape[-1], device=embedded.device).rsqrt()
        return embedded + torch.empty_like(embedded).uniform_(-1, 1) * scale.to(embedded.dtype)
