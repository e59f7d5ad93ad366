"""Attention within the documents of a packed row: causal inside each of them, none between them.

Called through transformers' `AttentionInterface`. transformers builds no mask for a function whose name it does not
know, so this one refuses to run without the boundaries: documents would silently attend to each other.

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
from transformers import AttentionInterface

NAME = "sft_documents"


class SharedPrefixes(Protocol):
    """How documents share leading tokens; made by `sft.batching.prefixes`, which explains the fields."""

    lengths: list[int]
    order: list[int]
    own: list[int]


_UNSUPPORTED = {
    "softcap": "caps its attention scores",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a bias to its attention scores",
    "head_mask": "masks heads",
}
"""Arguments of a model's attention that are not supported here -> a description, after "the model"."""


class UnsupportedAttention(Exception):
    """The model's attention needs an unsupported feature; the message continues "the model ..."."""


@contextmanager
def isolated_documents(model: Any, name: str | None) -> Iterator[None]:
    """Use the attention registered as `name` in this context; None keeps the model's own.

    Generation, which has no documents, needs the model's own attention.
    """
    if name is None:
        yield
        return
    AttentionInterface.register(NAME, attend_within_documents)
    before = attention_of(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.set_attn_implementation(name)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def attention_of(model: Any) -> str:
    """The name of the attention that a model, with or without adapters, uses now."""
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
    """Attend within documents; transformers calls this in each layer, and defines the parameters.

    Args:
        module: the attention layer.
        query: `[1, H, N, D]`.
        key, value: `[1, K, N, D]`.
        attention_mask: must be None.
        dropout: probability, on the attention weights.
        scaling: factor of the attention scores; None for `1 / sqrt(D)`.
        cu_seq_lens_q: int32 `[B + 1]`, the document boundaries.
        max_length_q: an upper bound of the documents' lengths.
        sliding_window: number of tokens that a token attends to, itself included.
        is_causal: False is not supported.
        shared_prefixes: set where shared leading tokens of documents occur in the row once (see
            `sft.batching.prefixes`); `N` is then less than the last boundary.
        others: arguments without effect, or not supported.

    Returns:
        `[1, N, H, D]`, and no attention weights.

    Raises:
        UnsupportedAttention: if the model needs something else.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise UnsupportedAttention("does not pass the document boundaries to its attention")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedAttention("passes a mask or a cache of its own to its attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("has attention that is not causal")
    if sliding_window is not None and sliding_window < max_length_q:
        raise UnsupportedAttention(f"attends within a sliding window of {sliding_window} tokens")
    for name, meaning in _UNSUPPORTED.items():
        if others.get(name) is not None:
            raise UnsupportedAttention(meaning)
    if query.device.type not in ("cpu", "cuda"):
        raise UnsupportedAttention(f"runs on {query.device.type}, where attention within documents is not implemented")
    if shared_prefixes is not None:
        query, key, value = (_with_prefixes(tensor, shared_prefixes) for tensor in (query, key, value))
    if query.device.type == "cuda":
        attended = _on_cuda(query, key, value, dropout, scaling, cu_seq_lens_q, max_length_q)
    else:
        attended = _on_cpu(query, key, value, dropout, scaling, cu_seq_lens_q)
    return attended if shared_prefixes is None else _without_borrowed(attended, shared_prefixes), None


def _with_prefixes(tensor: torch.Tensor, shared: SharedPrefixes) -> torch.Tensor:
    """`[1, H, N, D]` with every document complete.

    By pieces instead of an index, so that the gradients of a shared piece are summed in a fixed order, on a GPU too.
    """
    pieces = tensor.split(shared.lengths, dim=2)
    return torch.cat([pieces[number] for number in shared.order], dim=2)


def _without_borrowed(attended: torch.Tensor, shared: SharedPrefixes) -> torch.Tensor:
    """Of `[1, N, H, D]` with every document complete, the tokens that the packed row has."""
    pieces = attended.split([shared.lengths[number] for number in shared.order], dim=1)
    return torch.cat([pieces[index] for index in shared.own], dim=1)


@torch.compiler.disable  # compiled layers would be recompiled for each number of documents
def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    boundaries: torch.Tensor,
) -> torch.Tensor:
    """Document by document: short ones are cheap, and no score is computed that a mask would discard."""
    lengths = [length for length in boundaries.diff().tolist() if length]
    # Repeated once: inside each document's call, the backward pass would also run it per document.
    repeats = query.shape[1] // key.shape[1]
    key, value = _repeat_heads(key, repeats, dim=1), _repeat_heads(value, repeats, dim=1)
    # `split` and `cat` have one backward each; the backward of each slice would fill a full row with zeros.
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
    max_length: int,
) -> torch.Tensor:
    """torch's flash attention for documents of any length (`torch.nn.attention.varlen`, since torch 2.10)."""
    if dropout:
        raise UnsupportedAttention("uses dropout on attention weights, which the kernel for documents does not support")
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if kind not in (torch.float16, torch.bfloat16):
        raise UnsupportedAttention("computes in float32, and the kernel for documents needs 16 bits (bf16: true)")
    if query.shape[-1] > 256:
        raise UnsupportedAttention(f"has heads of size {query.shape[-1]}, and the kernel for documents takes up to 256")
    rows = [tensor[0].transpose(0, 1).to(kind) for tensor in (query, key, value)]
    varlen_attn, takes_window, takes_groups = _varlen_attention()
    options: dict[str, Any] = {"window_size": (-1, 0)} if takes_window else {"is_causal": True}
    if takes_groups:
        options["enable_gqa"] = True
    else:
        repeats = query.shape[1] // key.shape[1]
        rows[1:] = [_repeat_heads(tensor, repeats, dim=1) for tensor in rows[1:]]
    if scaling is not None and scaling != query.shape[-1] ** -0.5:
        if takes_window:
            options["scale"] = scaling
        else:
            rows[0] = rows[0] * (scaling * query.shape[-1] ** 0.5)
    return varlen_attn(*rows, boundaries, boundaries, max_length, max_length, **options)[None]


@cache
def _varlen_attention() -> tuple[Any, bool, bool]:
    """The kernel, whether it takes a window (else `is_causal`), and whether it supports grouped queries.

    Its signature differs between versions of torch: 2.10 has `is_causal`, 2.12 has `window_size` and `enable_gqa`.
    """
    try:
        # Not at the top: torch before 2.10 does not have it.
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UnsupportedAttention("needs torch 2.10 or later for attention within documents on a GPU") from None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn, "window_size" in known, "enable_gqa" in known


def _repeat_heads(tensor: torch.Tensor, repeats: int, *, dim: int) -> torch.Tensor:
    """Repeat each head, copies side by side, as grouped queries expect."""
    return tensor if repeats == 1 else tensor.repeat_interleave(repeats, dim=dim)
