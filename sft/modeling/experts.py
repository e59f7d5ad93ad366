"""The experts of a mixture, as transformers 5 keeps them: stacked in one parameter; or modules in a list."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sft.modeling.own_parameters import own_parameters

_EXPERT_COUNT = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts|moe_num_experts")


def expert_counts(model: Any) -> set[int]:
    """The numbers of experts that the model's configuration states; empty for a dense model."""
    settings = model.config.get_text_config().to_dict()
    counts = (value for key, value in settings.items() if _EXPERT_COUNT.fullmatch(str(key)))
    return {count for count in counts if isinstance(count, int) and count > 1}


def stacked_experts(model: Any) -> dict[str, nn.Parameter]:
    """The parameters `[E, n, m]` that hold the same matrix of all `E` experts, by their names without adapters."""
    counts = expert_counts(model)
    if not counts:
        return {}
    convolutions = {
        id(module.weight) for module in model.modules() if isinstance(module, _ConvNd) and module.weight is not None
    }
    return {
        name: weight
        for name, weight in own_parameters(model)
        if weight.dim() == 3 and weight.shape[0] in counts and id(weight) not in convolutions
    }


def listed_experts(model: Any) -> Iterator[nn.Linear]:
    """The linear layers of experts that are modules of their own, in a list inside a layer."""
    counts = expert_counts(model)
    for name, module in model.named_modules():
        is_in_a_layer = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.ModuleList) and is_in_a_layer and len(module) in counts:
            yield from (each for each in module.modules() if isinstance(each, nn.Linear))


def linear_routers(model: Any) -> list[str]:
    """Linear layers that choose the experts beside them, by their names; other routers are modules of their own."""
    counts = expert_counts(model)
    if not counts:
        return []
    inside = {id(weight) for weight in stacked_experts(model).values()} | {
        id(layer.weight) for layer in listed_experts(model)
    }
    return [
        f"{name}.{key}" if name else key
        for name, module in model.named_modules()
        for key, child in module.named_children()
        if isinstance(child, nn.Linear)
        and child.out_features in counts
        and id(child.weight) not in inside
        and any(id(weight) in inside for weight in module.parameters())
        and "." in name  # not the output layer beside the whole model
    ]
