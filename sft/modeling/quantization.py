"""Weights quantized by bitsandbytes: configured, made trainable under adapters, and de-quantized."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from sft.common.errors import ModelError
from sft.common.optional_packages import is_installed, missing_package
from sft.common.run_records import Precision
from sft.common.text import percent
from sft.configuration.schema import QuantizationConfig
from sft.modeling.experts import stacked_experts
from sft.modeling.own_parameters import num_parameters


def bitsandbytes_config(quantization: QuantizationConfig, precision: Precision) -> BitsAndBytesConfig:
    """The settings as transformers takes them.

    Raises:
        ModelError: if bitsandbytes is not installed.
    """
    if not is_installed("bitsandbytes"):
        raise ModelError(f"quantization_config: {missing_package('bitsandbytes')}.")
    compute = quantization.bnb_4bit_compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, precision.weights if compute == "auto" else compute),
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
    )


def unquantized_experts_line(config: Any, precision: Precision) -> str | None:
    """A line about stacked experts, which bitsandbytes leaves as they are; None for a model without them.

    Args:
        config: config.json of the model, of which no weights are read.
        precision: the types to compute in.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception:  # code of its own, or settings that no model can have: loading tells
        return None
    stacked, total = sum(weight.numel() for weight in stacked_experts(model).values()), num_parameters(model)
    if not stacked:
        return None
    stays_in_16_bits = precision.mixed != "no" and precision.weights != "float32"
    kind = precision.weights if stays_in_16_bits else "float32"
    return (
        f"quantization_config: bitsandbytes quantizes linear layers only. The experts of this model "
        f"({percent(stacked, total)} of the parameters) are stacked in single parameters and stay in {kind}: "
        f"{stacked * getattr(torch, kind).itemsize / 2**30:,.2f} GiB."
    )


def prepare_quantized_model(model: Any, *, is_mixed: bool) -> Any:
    """Freeze a quantized model and prepare it for training adapters on it.

    What is in 16 bits is cast to float32, as peft's `prepare_model_for_kbit_training` does: norms, embeddings and the
    output layer compute in it. Stacked experts are not among the layers that bitsandbytes quantizes, and may be most of
    the model: under autocast they compute in 16 bits anyway, and stay as they are.

    Args:
        model: as transformers loaded it.
        is_mixed: whether training uses autocast.
    """
    kept = {id(weight) for weight in stacked_experts(model).values()} if is_mixed else set()
    for weight in model.parameters():
        weight.requires_grad = False
        is_in_16_bits = weight.dtype in (torch.float16, torch.bfloat16) and type(weight) is nn.Parameter
        if is_in_16_bits and id(weight) not in kept:
            weight.data = weight.data.to(torch.float32)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _disable_cpu_repacking(model)
    return model


@torch.no_grad()
def dequantize(model: Any) -> Any:
    """A float32 model of the same class with the values that a model quantized by bitsandbytes computes with.

    The model is built from its configuration: layers that store their weight transposed (GPT-2's `Conv1D`) are linear
    layers while quantized.

    Raises:
        ModelError: if another method quantized the model.
    """
    method = model.config.quantization_config.quant_method
    method = str(getattr(method, "value", method))
    if "bitsandbytes" not in method:
        raise ModelError(
            f"{model.config.name_or_path}: its weights are quantized by {method}, which cannot be undone here. "
            "Name the same model in full precision with --base."
        )
    # An optional package, which a model quantized by it has needed before.
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    config = deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config.dtype = torch.float32
    plain = type(model)(config)
    values = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            state = module.state if isinstance(module, Linear8bitLt) else None
            weight = dequantize_bnb_weight(cast(nn.Parameter, module.weight), state)
            values[f"{name}.weight"] = weight.T if isinstance(plain.get_submodule(name), Conv1D) else weight
    for name, parameter in plain.named_parameters():
        parameter.copy_(values[name])
    for name, buffer in plain.named_buffers():
        buffer.copy_(model.get_buffer(name))
    plain.generation_config = model.generation_config
    return plain.to(model.device).eval()


def _disable_cpu_repacking(model: Any) -> None:
    """Prevent bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked form (`Linear4bit.forward`, bitsandbytes 0.50) is permanent, has no backward pass, and fails for layers
    narrower than a block of 64: training after an evaluation would get no gradient through these layers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
