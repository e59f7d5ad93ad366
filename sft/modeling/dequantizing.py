"""A quantized model as plain numbers: each weight what its 4 or 8 bits stand for."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from sft.common.errors import ModelError


@torch.no_grad()
def dequantize(model: Any) -> Any:
    """A float32 model of the same kind with the values that a model quantized by bitsandbytes computes with.

    It is built anew: layers that keep their weight the other way round (GPT-2's) are linear layers while quantized.

    Raises:
        ModelError: if another method quantized it.
    """
    method = model.config.quantization_config.quant_method
    method = str(getattr(method, "value", method))
    if "bitsandbytes" not in method:
        raise ModelError(
            f"{model.config.name_or_path}: its weights are quantized by {method}, which cannot be undone here. "
            "Name the same model in full precision with --base."
        )
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight
    from transformers.pytorch_utils import Conv1D

    config = deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config.dtype = torch.float32
    plain = type(model)(config)
    values = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            state = module.state if isinstance(module, Linear8bitLt) else None
            weight = dequantize_bnb_weight(module.weight, state)
            values[f"{name}.weight"] = weight.T if isinstance(plain.get_submodule(name), Conv1D) else weight
    for name, parameter in plain.named_parameters():
        parameter.copy_(values[name])
    for name, buffer in plain.named_buffers():
        buffer.copy_(model.get_buffer(name))
    plain.generation_config = model.generation_config
    return plain.to(model.device).eval()
