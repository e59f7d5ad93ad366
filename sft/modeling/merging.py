"""Merging adapters into the weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from sft.common.errors import ModelError, one_line


def merge_adapters(model: Any) -> Any:
    """Merge adapters, and modules saved beside them (`modules_to_save`, new tokens), into the model.

    An output layer that is tied to the input embedding is untied if adapters make the two differ: merging into a shared
    weight would change both.

    Args:
        model: adapters on an unquantized base; it must not be used afterwards.

    Raises:
        ModelError: if adapters of this kind cannot be merged.
    """
    kind = model.active_peft_config.peft_type.value
    if model.active_peft_config.is_prompt_learning or not hasattr(model, "merge_and_unload"):
        raise ModelError(f"Adapters of type {kind} are not part of the weights and cannot be merged.")
    was_tied = _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about tied weights, which are handled here
            merged = model.merge_and_unload(safe_merge=True)  # safe: raises if a weight becomes NaN or inf
    except ValueError as error:
        raise ModelError(f"The adapters cannot be merged: {one_line(error)}") from error
    if was_tied:
        _tie_again_if_equal(merged)
    for parameter in merged.parameters():
        parameter.requires_grad_(False)
    return merged.eval()


def _untie(base: Any) -> bool:
    """Give the output layer its own copy of a tied weight; returns whether it was tied."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or base.get_input_embeddings() is None:
        return False
    own_embedding, own_head = _without_adapters(embedding), _without_adapters(head)
    if own_embedding.weight is not own_head.weight:
        return False
    if own_embedding is not embedding or own_head is not head:
        own_head.weight = nn.Parameter(own_head.weight.detach().clone(), requires_grad=False)
    return True


def _without_adapters(module: nn.Module) -> Any:
    """The original layer that adapters, or a trained copy, wrap."""
    inner = module._modules.get("base_layer") or module._modules.get("original_module")
    return module if inner is None else _without_adapters(inner)


def _tie_again_if_equal(model: Any) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:
        return
    if embedding.weight.shape == head.weight.shape and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
