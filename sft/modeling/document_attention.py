"""Attention within the documents of a packed row: causal inside each of them, none between them.

On CPU documents are attended one by one (`attention_by_document`), on a GPU all at once by torch's kernel
(`varlen_kernel`; `flex_kernel` for capped scores and sinks), or one by one too where that cannot be used. Called
through transformers' `AttentionInterface`. transformers builds no mask for a function whose name it does not know, so
this one refuses to run without the boundaries: documents would silently attend to each other.

Shapes: `H` heads, `K` heads of keys and values, `N` tokens of the row, `D` size of a head, `E` of a value, `B`
documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from sft.modeling.architecture import value_of_layer
from sft.modeling.attention_by_document import attend_one_by_one
from sft.modeling.flex_kernel import FlexKernel, find_flex
from sft.modeling.varlen_kernel import AttentionTerms, VarlenKernel, find_kernel

NAME = "sft_documents"
ONE_BY_ONE = "sft_documents_one_by_one"
"""Without the kernel, on a GPU too."""


class SharedPrefixes(Protocol):
    """How documents share leading tokens; made by `sft.batching.prefixes`, which explains the fields."""

    lengths: list[int]
    order: list[int]
    own: list[int]


_UNSUPPORTED = {"position_bias": "adds a bias to its attention scores", "head_mask": "masks heads"}
"""Arguments of a model's attention that are not supported here -> a description, after "the model"."""


_SINKS = ("s_aux", "sinks")
"""The names that models give their sinks."""


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
    kernel, flex = find_kernel(model.device), find_flex(model.device)
    AttentionInterface.register(NAME, partial(attend_within_documents, kernel=kernel, flex=flex))
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
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    shared_prefixes: SharedPrefixes | None = None,
    document_lengths: Sequence[int] | None = None,
    kernel: VarlenKernel | None = None,
    flex: FlexKernel | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents; transformers calls this in each layer, and defines the parameters.

    Args:
        module: the attention layer; its configuration tells what transformers puts into masks alone.
        query: `[1, H, N, D]`.
        key, value: `[1, K, N, D]` and `[1, K, N, E]`.
        attention_mask: must be None.
        dropout: probability, on the attention weights.
        scaling, softcap: factor of the attention scores, None for `1 / sqrt(D)`; their bound, None for none.
        cu_seq_lens_q, max_length_q: int32 `[B + 1]`, the document boundaries; an upper bound of their lengths.
        is_causal: False is not supported.
        shared_prefixes: set where shared leading tokens of documents occur in the row once (see
            `sft.batching.prefixes`); `N` is then less than the last boundary.
        document_lengths: of the `B` documents; None reads them from the boundaries, which waits for a GPU.
        kernel, flex: compute all documents at once, `flex` capped scores and sinks; None attends one by one.
        others: `sliding_window`, sinks, and arguments without effect, or not supported.

    Returns:
        `[1, N, H, E]`, and no attention weights.

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
    terms = _terms(module, query.device.type, others, dropout=dropout, scaling=scaling, softcap=softcap or None)
    if shared_prefixes is not None:
        query, key, value = (_with_prefixes(tensor, shared_prefixes) for tensor in (query, key, value))
    if kernel is None:
        attended = attend_one_by_one(query, key, value, terms, document_lengths or _lengths(cu_seq_lens_q))
    elif terms.is_plain or flex is None:
        attended = kernel(query, key, value, terms, cu_seq_lens_q, max_length_q)
    else:
        attended = flex(query, key, value, terms, cu_seq_lens_q)
    return attended if shared_prefixes is None else _without_borrowed(attended, shared_prefixes), None


def _terms(module: torch.nn.Module, device: str, others: Mapping[str, Any], **known: Any) -> AttentionTerms:
    """What the layer's attention is computed with, after a look for what is not supported."""
    if device not in ("cpu", "cuda"):
        raise UnsupportedAttention(f"runs on {device}, where attention within documents is not implemented")
    for name, meaning in _UNSUPPORTED.items():
        if others.get(name) is not None:
            raise UnsupportedAttention(meaning)
    sinks = next((others[name] for name in _SINKS if others.get(name) is not None), None)
    window, chunk = _reach(module, others)
    return AttentionTerms(window=window, chunk=chunk, sinks=sinks, **known)


def _reach(module: torch.nn.Module, others: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """The layer's window and the size of its chunks, in tokens; None for none.

    transformers passes most windows to the attention. Chunks and the windows of some models are in its masks alone,
    which are made by the layer's kind in the configuration: without kinds, all layers are of the one that has a size.
    """
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    window, chunk = (_of_layer(module, config, name) for name in ("sliding_window", "attention_chunk_size"))
    is_passed = "sliding_window" in others
    if is_passed:
        window = others["sliding_window"]
    if kinds and (chunk is not None or (window is not None and not is_passed)):
        kind = _kind(module, kinds)
        window = window if is_passed or "sliding" in kind else None
        chunk = chunk if "chunked" in kind else None
    return window, chunk


def _of_layer(module: torch.nn.Module, config: Any, name: str) -> Any:
    """A field of the configuration, in this layer where layers differ.

    torch compiles a layer again for each number that is read from it: a layer's number is read only where necessary.
    """
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return value_of_layer(config, name, getattr(module, "layer_idx", None))


def _kind(module: torch.nn.Module, kinds: Sequence[str]) -> str:
    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]  # without the layer's number: see `_of_layer`
    index = getattr(module, "layer_idx", None)
    return kinds[index] if index is not None and index < len(kinds) else ""


def _lengths(boundaries: torch.Tensor) -> list[int]:
    return [length for length in boundaries.diff().tolist() if length]


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
