"""The size of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sft.common.run_records import ModelFootprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def footprint(model: "PreTrainedModel") -> ModelFootprint:
    """The model's size. A quantized weight counts the parameters it stands for."""
    config = model.config.get_text_config()
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    is_shared = output is not None and getattr(output, "weight", None) is embedding.weight
    # Two 4-bit weights share a byte: bitsandbytes' own attribute tells the true count.
    sizes = [(_true_count(p), p.requires_grad, p.numel() * p.element_size()) for p in model.parameters()]
    return ModelFootprint(
        num_parameters=sum(count for count, _, _ in sizes),
        num_trainable_parameters=sum(count for count, trainable, _ in sizes if trainable),
        weight_bytes=sum(size for _, _, size in sizes),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        intermediate_size=getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 0,
        num_attention_heads=getattr(config, "num_attention_heads", 0),
        num_lookup_parameters=0 if is_shared else embedding.weight.numel(),
        num_4bit_parameters=sum(_true_count(p) for p in model.parameters() if _true_count(p) != p.numel()),
    )


def _true_count(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
