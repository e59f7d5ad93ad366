"""The dimensions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft.common.run_records import ModelFootprint
from sft.modeling.architecture import values_of_layers
from sft.modeling.experts import stacked_experts
from sft.modeling.own_parameters import unpacked_count

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def footprint(model: "PreTrainedModel", least_bytes: int = 0) -> ModelFootprint:
    """Measure the model, in one pass over its parameters; a quantized weight counts its original parameters.

    Args:
        model: the model, adapters included.
        least_bytes: of a weight that is not quantized, once it is cast to its dtype in training.
    """
    config = model.config.get_text_config()
    embedding: Any = model.get_input_embeddings()
    output = model.get_output_embeddings()
    is_tied = output is not None and getattr(output, "weight", None) is embedding.weight
    parameters = [(parameter, unpacked_count(parameter)) for parameter in model.parameters()]
    stacks = stacked_experts(model)
    adapted = _with_adapters(model)
    return ModelFootprint(
        num_parameters=sum(count for _, count in parameters),
        num_trainable_parameters=sum(count for parameter, count in parameters if parameter.requires_grad),
        weight_bytes=sum(
            parameter.numel() * max(parameter.element_size(), least_bytes * parameter.is_floating_point())
            for parameter, _ in parameters
        ),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        intermediate_size=max(
            values_of_layers(config, "intermediate_size") or values_of_layers(config, "n_inner"), default=0
        ),
        num_attention_heads=max(values_of_layers(config, "num_attention_heads"), default=0),
        head_size=max(values_of_layers(config, "head_dim"), default=0),
        num_lookup_parameters=0 if is_tied else embedding.weight.numel(),
        num_stacked_parameters=sum(weight.numel() for weight in stacks.values()),
        stacked_rank_parameters=sum(len(weight) * sum(weight.shape[1:]) for weight in stacks.values()),
        adapted_stack_bytes=sum(
            weight.numel() * weight.element_size() for weight in stacks.values() if id(weight) in adapted
        ),
        num_4bit_parameters=sum(count for parameter, count in parameters if count != parameter.numel()),
    )


def _with_adapters(model: Any) -> set[int]:
    """The ids of single parameters with an adapter: peft's wrapper of their module names them."""
    wrappers = ((each, getattr(each, "parameter_name", None)) for each in model.modules())
    return {id(getattr(each.get_base_layer(), name)) for each, name in wrappers if name is not None}
