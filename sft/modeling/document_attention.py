"""Attention within the documents of a packed row: causal inside each of them, none between them.

On CPU documents are attended one by one, on a GPU all at once by torch's kernel (`varlen_kernel`), or one by one too
where that cannot be used. Called through transformers' `AttentionInterface`. transformers builds no mask for a function
whose name it does not know, so this one refuses to run without the boundaries: documents would silently attend to each
other.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `D` size of a head, `B` documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from sft.modeling.varlen_kernel import VarlenKernel, find_kernel, repeat_heads

NAME = "sft_documents"
ONE_BY_ONE = "sft_documents_one_by_one"
"""Without the kernel, on a GPU too."""


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
    """Use `NAME`, `ONE_BY_ONE` or another registered attention in this context; None keeps the model's own.

    Generation, which has no documents, needs the model's own attention.
    """
    if name is None:
        yield
        return
    AttentionInterface.register(NAME, partial(attend_within_documents, kernel=find_kernel(model.device)))
    AttentionInterface.register(ONE_BY_ONE, attend_within_documents)
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
    document_lengths: Sequence[int] | None = None,
    kernel: VarlenKernel | None = None,
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
        document_lengths: of the `B` documents; None reads them from the boundaries, which waits for a GPU.
        kernel: computes all documents at once; None attends one by one.
        others: arguments without effect, or not supported.

    Returns:
        `[1, N, H, D]`, and no attention weights.

    Raises:
        UnsupportedAttention: if the model needs something else.
        KernelObstacle: if the kernel cannot compute it.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise UnsupportedAttention("does not pass the document boundaries to its attention")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise UnsupportedAttention("passes a mask or a cache of its own to its attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("has attention that is not causal")
    if sliding_window is not None and sliding_window < max_length_q:
        raise UnsupportedAttention(f"attends within a sliding window of {sliding_window} tokens")
    _check_arguments(others, query.device.type)
    if shared_prefixes is not None:
        query, key, value = (_with_prefixes(tensor, shared_prefixes) for tensor in (query, key, value))
    if kernel is not None:
        attended = kernel(query, key, value, dropout, scaling, cu_seq_lens_q, max_length_q)
    else:
        attended = _one_by_one(query, key, value, dropout, scaling, cu_seq_lens_q, document_lengths)
    return attended if shared_prefixes is None else _without_borrowed(attended, shared_prefixes), None


def _check_arguments(others: Mapping[str, Any], device_type: str) -> None:
    """Refuses arguments of a model's attention that have an effect, and devices without an implementation."""
    for name, meaning in _UNSUPPORTED.items():
        if others.get(name) is not None:
            raise UnsupportedAttention(meaning)
    if device_type not in ("cpu", "cuda"):
        raise UnsupportedAttention(f"runs on {device_type}, where attention within documents is not implemented")


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
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    boundaries: torch.Tensor,
    lengths: Sequence[int] | None,
) -> torch.Tensor:
    """Short documents are cheap, and no score is computed that a mask would discard."""
    if lengths is None:
        lengths = [length for length in boundaries.diff().tolist() if length]
    # Repeated once: inside each document's call, the backward pass would also run it per document.
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_heads(key, repeats, dim=1), repeat_heads(value, repeats, dim=1)
    # `split` and `cat` have one backward each; the backward of each slice would fill a full row with zeros.
    parts = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    attended = [
        scaled_dot_product_attention(*part, dropout_p=dropout, is_causal=True, scale=scaling).transpose(1, 2)
        for part in parts
    ]
    return torch.cat(attended, dim=1)
