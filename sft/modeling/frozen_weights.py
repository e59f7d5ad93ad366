"""What adapters leave frozen: experts, and linear layers that peft passes over. A line for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft.common.text import percent
from sft.modeling.adapter_targets import takes_parameters
from sft.modeling.experts import listed_experts, stacked_experts
from sft.modeling.own_parameters import is_of_adapters, kinds_of, num_parameters, own_parameters, unpacked_count
from sft.modeling.text_path import is_inside


def adapter_lines(model: Any, unused: Sequence[str], *, all_linear: bool) -> Iterator[str]:
    """Lines about the experts of a model with adapters, and about linear layers that got none.

    Args:
        model: with its adapters.
        unused: modules that a row of text does not reach, which do not count.
        all_linear: whether every linear layer should have one, so that those without are reported.
    """
    adapted = {id(weight) for weight in _adapted_weights(model)}
    experts = _experts(model)
    total = num_parameters(model)
    with_adapters: dict[str, int] = {}
    without: dict[str, int] = {}
    linear: dict[str, int] = {}
    linear_weights = {id(module.weight) for module in _linear_layers(model)}
    for name, weight in own_parameters(model):
        if is_inside(name, unused):
            continue
        if id(weight) in experts:
            (with_adapters if id(weight) in adapted or weight.requires_grad else without)[name] = unpacked_count(weight)
        elif id(weight) in linear_weights - adapted and not weight.requires_grad:
            linear[name] = unpacked_count(weight)
    if without:
        yield (
            f"Experts: {percent(sum(without.values()), total)} of the parameters, frozen without adapters "
            f"({kinds_of(without)}). {_how_to_adapt(model)}"
        )
    if with_adapters:
        share = percent(sum(with_adapters.values()), total)
        yield f"Experts: {share} of the parameters, with adapters ({kinds_of(with_adapters)})."
    if linear and all_linear:
        yield (
            f"Linear layers frozen without adapters: {percent(sum(linear.values()), total)} of the parameters "
            f"({kinds_of(linear)})."
        )


def _how_to_adapt(model: Any) -> str:
    """What to write for experts with adapters."""
    stacks = stacked_experts(model)
    if not stacks:
        return "To train them, name their layers in target_modules, or train all weights (no lora_config)."
    if not takes_parameters():
        return "The installed peft cannot adapt them: pip install -U peft, or train all weights (no lora_config)."
    ends = dict.fromkeys(".".join(name.split(".")[-2:]) for name in stacks)
    return f"To train them, write target_parameters: [{', '.join(ends)}], or train all weights (no lora_config)."


def _experts(model: Any) -> set[int]:
    """The ids of the experts' weights."""
    listed = {id(layer.weight) for layer in listed_experts(model)}
    return listed | {id(weight) for weight in stacked_experts(model).values()}


def _adapted_weights(model: Any) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # The wrapper of a single parameter (peft's ParamWrapper) names it; other layers have a weight.
            weight = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"), None)
            if isinstance(weight, nn.Parameter):
                yield weight


def _linear_layers(model: Any) -> Iterator[Any]:
    """The model's linear layers, without those of adapters, the output layer, and copies that are trained instead."""
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not is_of_adapters(name):
            yield module
