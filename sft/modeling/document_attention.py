"""Attention that keeps to the documents of a row: causal inside each, and nothing between them.

Called through transformers' `AttentionInterface`. transformers builds no mask for a function whose name it does not
know, so this one refuses to run without the boundaries: it would let documents see each other in silence.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `D` size of a head, `B` documents.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "sft_documents"


class SharedPrefixes(Protocol):
    """As `sft.batching.prefixes` makes it."""

    lengths: list[int]
    order: list[int]
    own: list[int]


_UNSERVED = {
    "softcap": "caps its attention scores",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a bias to its attention scores",
    "head_mask": "masks heads",
}
"""What a model may ask of its attention that is not done here -> how to say so."""


class UnsupportedAttention(Exception):
    """The model asks for something of its attention that is not done here; the text says what, after "the model"."""


@contextmanager
def isolated_documents(model: Any, name: str | None) -> Iterator[None]:
    """For as long as it lasts, the model's attention is the one called `name`; None leaves it as it is.

    Generation, which has no documents, needs the model's own again.
    """
    if name is None:
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend_within_documents)
    before = attention_of(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(name)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def attention_of(model: Any) -> str:
    """The name of the attention that a model has now, with adapters or without."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.config._attn_implementation


def attend_within_documents(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    shared_prefixes: SharedPrefixes | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer.

    Args:
        module: the attention layer.
        query: `[1, H, N, D]`.
        key, value: `[1, K, N, D]`.
        attention_mask: must be None.
        dropout: on the attention weights.
        scaling: of the scores; None for `1 / sqrt(D)`.
        cu_seq_lens_q: int32 `[B + 1]`, the documents' boundaries.
        max_length_q: a bound of their lengths.
        sliding_window: tokens that a token sees, itself among them.
        is_causal: False is not served.
        shared_prefixes: where leading tokens of documents stand in the row but once (see `sft.batching.prefixes`): `N` is
            then less than the boundaries say.
        others: of no effect, or not served.

    Returns:
        `[1, N, H, D]`, and no weights.

    Raises:
        UnsupportedAttention: if that is not what the model needs.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise UnsupportedAttention("does not pass the documents' boundaries on to its attention")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedAttention("brings a mask or a cache of its own to its attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("has attention that looks ahead")
    if sliding_window is not None and sliding_window < max_length_q:
        raise UnsupportedAttention(f"attends within a sliding window of {sliding_window} tokens")
    for name, meaning in _UNSERVED.items():
        if others.get(name) is not None:
            raise UnsupportedAttention(meaning)
    if query.device.type not in ("cpu", "cuda"):
        raise UnsupportedAttention(f"runs on {query.device.type}, where no attention by documents is at hand")
    if shared_prefixes is not None:
        query, key, value = (_made_whole(tensor, shared_prefixes) for tensor in (query, key, value))
    if query.device.type == "cuda":
        attended = _on_cuda(query, key, value, dropout, scaling, cu_seq_lens_q, max_length_q)
    else:
        attended = _on_cpu(query, key, value, dropout, scaling, cu_seq_lens_q)
    return attended if shared_prefixes is None else _own_part(attended, shared_prefixes), None


def _made_whole(tensor: torch.Tensor, shared: SharedPrefixes) -> torch.Tensor:
    """`[1, H, N, D]` with every document whole. Pieces, not an index: the gradient of one that is used often is summed
    in the same order each time, on a GPU too."""
    pieces = tensor.split(shared.lengths, dim=2)
    return torch.cat([pieces[number] for number in shared.order], dim=2)


def _own_part(attended: torch.Tensor, shared: SharedPrefixes) -> torch.Tensor:
    """Of `[1, N, H, D]` with every document whole, what stands in the row itself."""
    pieces = attended.split([shared.lengths[number] for number in shared.order], dim=1)
    return torch.cat([pieces[place] for place in shared.own], dim=1)


@torch.compiler.disable  # or compiled layers would be compiled anew for each number of documents
def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    boundaries: torch.Tensor,
) -> torch.Tensor:
    """Document by document: short ones cost little, and no score is made that a mask would throw away."""
    lengths = [length for length in boundaries.diff().tolist() if length]
    # Repeated at once: left to each document's call, it would be done for each of them on the way back too.
    repeats = query.shape[1] // key.shape[1]
    key, value = _repeat_heads(key, repeats, dim=1), _repeat_heads(value, repeats, dim=1)
    # `split` and `cat` have one gradient each; of slices, each would fill the whole row with zeros.
    parts = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    attended = [
        scaled_dot_product_attention(*part, dropout_p=dropout, is_causal=True, scale=scaling).transpose(1, 2)
        for part in parts
    ]
    return torch.cat(attended, dim=1)


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    boundaries: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """torch's own flash attention for documents of any length (`torch.nn.attention.varlen`, from torch 2.10 on)."""
    if dropout:
        raise UnsupportedAttention("drops attention weights out, which the kernel for documents cannot")
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if kind not in (torch.float16, torch.bfloat16):
        raise UnsupportedAttention("computes in float32, and the kernel for documents needs 16 bits (bf16: true)")
    if query.shape[-1] > 256:
        raise UnsupportedAttention(f"has heads of {query.shape[-1]} numbers, and the kernel for documents takes 256")
    rows = [tensor[0].transpose(0, 1).to(kind) for tensor in (query, key, value)]
    varlen_attn, knows_window, knows_groups = _varlen_attention()
    options: dict[str, Any] = {"window_size": (-1, 0)} if knows_window else {"is_causal": True}
    if knows_groups:
        options["enable_gqa"] = True
    else:
        repeats = query.shape[1] // key.shape[1]
        rows[1:] = [_repeat_heads(tensor, repeats, dim=1) for tensor in rows[1:]]
    if scaling is not None and scaling != query.shape[-1] ** -0.5:
        if knows_window:
            options["scale"] = scaling
        else:
            rows[0] = rows[0] * (scaling * query.shape[-1] ** 0.5)
    return varlen_attn(*rows, boundaries, boundaries, longest, longest, **options)[None]


@cache
def _varlen_attention() -> tuple[Any, bool, bool]:
    """The kernel, whether it is told a window (else `is_causal`), and whether it shares keys among heads by itself.

    Its signature changed between versions of torch: 2.10 took `is_causal`, 2.12 takes `window_size` and `enable_gqa`.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UnsupportedAttention("needs torch 2.10 or later to keep documents apart on a GPU") from None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn, "window_size" in known, "enable_gqa" in known


def _repeat_heads(tensor: torch.Tensor, repeats: int, *, dim: int) -> torch.Tensor:
    """Each head so many times, side by side, as grouped queries find theirs."""
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=dim)
