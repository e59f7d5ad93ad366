"""The dimensions of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sft.common.run_records import ModelFootprint
from sft.modeling.architecture import values_of_layers

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
        num_4bit_parameters=sum(count for parameter, count in parameters if count != parameter.numel()),
    )


def unpacked_count(parameter: Any) -> int:
    """Number of weights in a parameter; bitsandbytes packs two 4-bit weights into a byte."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
