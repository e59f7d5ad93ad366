"""Adapters made a part of the weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from sft.common.errors import ModelError, one_line


def merge_adapters(model: Any) -> Any:
    """The model with its adapters in its weights; what was saved beside them (whole modules, new tokens) in its place.

    An output layer that shares its weight with the input embedding gets one of its own where adapters make them differ:
    merging into a shared weight would change both.

    Args:
        model: adapters on a base that is not quantized; it is used up.

    Raises:
        ModelError: if adapters of this kind cannot be merged.
    """
    kind = model.active_peft_config.peft_type.value
    if model.active_peft_config.is_prompt_learning or not hasattr(model, "merge_and_unload"):
        raise ModelError(f"Adapters of the kind {kind} are no part of the weights and cannot be merged.")
    was_tied = _untie(model.get_base_model())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on tied weights, which are seen to here
            whole = model.merge_and_unload(safe_merge=True)  # safe: says if a weight comes out as no finite number
    except ValueError as error:
        raise ModelError(f"The adapters cannot be merged: {one_line(error)}") from error
    if was_tied:
        _tie_again_if_alike(whole)
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    return whole.eval()


def _untie(base: Any) -> bool:
    """Gives the output layer a copy of a weight that it shares; returns whether it shared one."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or base.get_input_embeddings() is None:
        return False
    own_embedding, own_head = _without_adapters(embedding), _without_adapters(head)
    if own_embedding.weight is not own_head.weight:
        return False
    if own_embedding is not embedding or own_head is not head:
        own_head.weight = nn.Parameter(own_head.weight.detach().clone(), requires_grad=False)
    return True


def _without_adapters(module: nn.Module) -> nn.Module:
    """The layer that adapters, or a copy that is trained, stand beside."""
    inner = module._modules.get("base_layer") or module._modules.get("original_module")
    return module if inner is None else _without_adapters(inner)


def _tie_again_if_alike(model: Any) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight is head.weight:
        return
    if embedding.weight.shape == head.weight.shape and torch.equal(embedding.weight, head.weight):
        head.weight = embedding.weight
        return
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
