"""Rotary positions (RoPE) that depend on the length of a row: each row gets those of its own length.

LongRoPE and dynamic NTK choose their frequencies by the largest position of a call: some up to a number of tokens,
others beyond. In a batch, a short row beside a long one would get the long one's; with dynamic NTK even in a later
batch. Training and evaluation would depend on which rows share a batch. At inference with transformers a row is alone,
and its own length decides, so it decides here too. (vLLM decides once for all rows, by its `max_model_len`.) The
model's own computation is called for each length that makes a difference, and every token takes the result for its row.

Shapes: `B` rows, `T` tokens, `D` rotary dimensions.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_BY_LENGTH = ("longrope", "dynamic")


def give_rows_their_own_rope(model: Any, max_seq_length: int) -> str | None:
    """Make the rotary positions of each row independent of other rows, where they would not be.

    Rows are told apart by positions that start again at 0. Padding must have position 0 too.

    Args:
        model: with or without adapters; forward hooks are added to its rotary modules.
        max_seq_length: tokens of the longest row.

    Returns:
        The kind of RoPE and its limit, `longrope beyond 4,096 tokens`; None if no row can reach the limit.
    """
    found = None
    for module in model.modules():
        for layer_type, kind in _kinds(module).items():
            limit = _limit(module, layer_type, kind)
            if limit is not None and max_seq_length > limit:
                found = f"{kind} beyond {limit:,} tokens"
        if found is not None and _kinds(module):
            module.register_forward_hook(_by_row, with_kwargs=True)
    return found


def unknown_rope(model: Any, max_seq_length: int) -> str | None:
    """The kind of a RoPE by length that the model computes in code of its own, where it may depend on the batch."""
    config = model.config.get_text_config()
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = settings.get("rope_type") or settings.get("type") if isinstance(settings, Mapping) else None
    known = settings.get("original_max_position_embeddings") if isinstance(settings, Mapping) else None
    limit = known or getattr(config, "original_max_position_embeddings", None) or config.max_position_embeddings
    if kind not in (*_BY_LENGTH, "su") or max_seq_length <= limit or any(_kinds(each) for each in model.modules()):
        return None
    return kind


def _kinds(module: nn.Module) -> dict[str | None, str]:
    """The kinds of RoPE by length that a module computes, by type of layer (None if there is one for all)."""
    kinds = getattr(module, "rope_type", None)
    by_layer: Mapping[str | None, Any] = kinds if isinstance(kinds, Mapping) else {None: kinds}
    return {
        layer: kind for layer, kind in by_layer.items() if isinstance(kind, str) and any(k in kind for k in _BY_LENGTH)
    }


def _limit(module: Any, layer_type: str | None, kind: str) -> int | None:
    """The longest row with the short frequencies."""
    if kind != "longrope":
        return getattr(module, "original_max_seq_len", None)
    settings = module.config.rope_parameters
    return (settings if layer_type is None else settings[layer_type])["original_max_position_embeddings"]


def _by_row(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook: the module's output `[..., T, D]` (or a tuple of such) for each token by the length of its row."""
    given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    layer_type = given.get("layer_type")
    kind = _kinds(module).get(layer_type)
    limit = None if kind is None else _limit(module, layer_type, kind)
    if kind is None or limit is None or given.get("position_ids") is None:
        return output
    positions = given["position_ids"]
    lengths = _row_lengths(positions)
    long = lengths > limit
    # Up to the limit all rows are alike, and beyond it with LongRoPE.
    lengths = torch.where(long, lengths.max() if kind == "longrope" else lengths, limit)
    result: list[torch.Tensor] = []
    for length in lengths.unique().tolist():
        chosen = lengths == length
        if kind != "longrope":
            # A single token makes the module forget the longest row that it has seen.
            module.forward(**{**given, "position_ids": torch.zeros_like(positions[..., :1])})
        computed = module.forward(**{**given, "position_ids": torch.where(chosen, positions, 0)})
        tensors = computed if isinstance(computed, tuple) else (computed,)
        result = [torch.where(chosen[..., None], new, old) for new, old in zip(tensors, result or tensors, strict=True)]
    return tuple(result) if isinstance(output, tuple) else result[0]


def _row_lengths(positions: torch.Tensor) -> torch.Tensor:
    """For each position, the last position of its row plus 1; rows start at position 0. Same shape."""
    flat = positions.reshape(-1, positions.shape[-1])
    starts = flat == 0
    starts[:, 0] = True
    rows = starts.flatten().cumsum(0) - 1
    longest = torch.zeros_like(rows).scatter_reduce(0, rows, flat.flatten() + 1, "amax", include_self=True)
    return longest[rows].view_as(positions)
