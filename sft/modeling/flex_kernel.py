"""torch's `flex_attention` for what its flash attention cannot compute: capped scores and attention sinks, on a GPU.

Documents, windows and chunks are one bound for each token: the first token that it reaches. From that follow the blocks
that are computed, as arithmetic on the device, without a mask of all tokens by all. Rows are filled up, so that few
shapes are compiled.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `M` filled up, `D` size of a head, `E` of a
value, `B` documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.modeling.varlen_kernel import LEAST_CAPABILITY, AttentionTerms, KernelObstacle, widened

_BLOCK = 128
"""Tokens of a block, as flex_attention has them by default."""
_FILLED = 1024
"""Long rows are filled up to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlexKernel:
    """flex_attention of the installed torch, compiled."""

    attend: Callable[..., Any]
    lse: Any
    """The request of the logarithms of the softmax' sums."""
    _masks: dict[tuple[int | None, int | None], tuple[torch.Tensor, Any]] = field(default_factory=dict)
    """Window and chunk -> boundaries and their mask: the layers of a model have few kinds, and the same boundaries."""

    @torch.compiler.disable  # the masks that are kept would be constants of compiled layers
    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        terms: AttentionTerms,
        boundaries: torch.Tensor,
    ) -> torch.Tensor:
        """Causal attention within documents, `[1, N, H, E]`.

        Args:
            query: `[1, H, N, D]`.
            key, value: `[1, K, N, D]` and `[1, K, N, E]`.
            terms: of the layer.
            boundaries: int32 `[B + 1]`, on the device.

        Raises:
            KernelObstacle: if it cannot.
        """
        if terms.dropout:
            raise KernelObstacle("the model uses dropout on attention weights, which flex_attention does not support")
        num_tokens, value_size = query.shape[2], value.shape[-1]
        rest = -num_tokens % (_FILLED if num_tokens > _FILLED else _BLOCK)
        kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
        rows = (
            functional.pad(each, (0, 0, 0, rest)).to(kind) for each in (query, key, widened(value, query.shape[-1]))
        )
        try:
            attended, aux = self.attend(
                *rows,
                score_mod=None if terms.softcap is None else _capped(terms.softcap),
                block_mask=self._mask(terms, boundaries, num_tokens + rest),
                scale=terms.scaling,
                enable_gqa=query.shape[1] != key.shape[1],
                return_aux=self.lse,
            )
        except Exception as error:  # a compiler may fail in any way; documents can still be attended one by one
            reraise_device_error(error)
            raise KernelObstacle(f"flex_attention cannot compute it ({one_line(error, 160)})") from error
        if terms.sinks is not None:
            # A sink only takes its share of each softmax: exp(lse) / (exp(lse) + exp(sink)) is left.
            attended = (attended * torch.sigmoid(aux.lse - terms.sinks[None, :, None])[..., None]).to(attended.dtype)
        return attended[:, :, :num_tokens, :value_size].transpose(1, 2)

    def _mask(self, terms: AttentionTerms, boundaries: torch.Tensor, num_tokens: int) -> Any:
        kept = self._masks.get((terms.window, terms.chunk))
        if kept is None or kept[0] is not boundaries:
            kept = boundaries, block_mask(first_reached(boundaries, num_tokens, terms))
            self._masks[terms.window, terms.chunk] = kept
        return kept[1]


def find_flex(device: torch.device) -> FlexKernel | None:
    """flex_attention for a device; None where it does not run."""
    if device.type != "cuda":
        return None
    if not torch.version.hip and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return None
    return FlexKernel(attend=torch.compile(flex_attention), lse=AuxRequest(lse=True))


def first_reached(boundaries: torch.Tensor, num_tokens: int, terms: AttentionTerms) -> torch.Tensor:
    """For each of `M` tokens the first token that it attends to, int64 `[M]`; it never decreases.

    Tokens beyond the last boundary are one more document. Nothing is read back from the device.
    """
    place = torch.arange(num_tokens, device=boundaries.device)
    start = boundaries.long()[torch.searchsorted(boundaries[1:].long(), place, right=True)]
    if terms.chunk is not None:
        start = start + (place - start) // terms.chunk * terms.chunk
    return start if terms.window is None else torch.maximum(start, place - terms.window + 1)


def block_mask(first: torch.Tensor) -> Any:
    """flex_attention's mask of tokens that attend from `first` `[M]` up to themselves; `M` is a multiple of a block."""
    number = torch.arange(len(first) // _BLOCK, device=first.device)
    first_block = first[::_BLOCK] // _BLOCK  # the first token of a block reaches the farthest
    indices = (first_block[:, None] + number) % len(number)
    return BlockMask.from_kv_blocks(
        (number - first_block + 1).to(torch.int32)[None, None],
        indices.to(torch.int32)[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=lambda _, __, query, key: (key <= query) & (key >= first[query]),
    )


def _capped(softcap: float) -> Callable[..., torch.Tensor]:
    return lambda score, *_: softcap * torch.tanh(score / softcap)
