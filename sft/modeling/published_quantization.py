"""Weights that are quantized in their files: de-quantized where transformers can, or trained as they are."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from sft.common.errors import ConfigError, ModelError
from sft.configuration.schema import ModelConfig
from sft.modeling.architecture import quantization_method
from sft.modeling.loading_errors import readable_loading_errors

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def dequantizing_options(described: "PretrainedConfig | None", path: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` with which it de-quantizes a model's weights, for `dequantize: true`.

    Empty where weights are de-quantized after they were loaded (see `dequantize_loaded`).

    Args:
        described: the model's config.json.
        path: of the model.

    Raises:
        ConfigError: if the weights are not quantized.
        ModelError: if a package is missing.
    """
    method = quantization_method(described) if described is not None else None
    if method is None:
        raise ConfigError(f"dequantize: the weights of {path} are not quantized (config.json); remove the key.")
    if not _takes_field(method):
        return {}
    with readable_loading_errors("model", path):  # its package may be missing
        return {"quantization_config": AUTO_QUANTIZATION_CONFIG_MAPPING[method](dequantize=True)}


def dequantize_loaded(model: Any, path: str) -> None:
    """De-quantize a model in place, where loading left it quantized.

    Raises:
        ModelError: if transformers cannot.
    """
    if getattr(model, "hf_quantizer", None) is None:
        return
    method = quantization_method(model.config)
    try:
        model.dequantize()
    except NotImplementedError as error:
        raise ModelError(
            f"dequantize: transformers cannot de-quantize weights quantized by {method}, as those of {path} are. "
            "Remove the key to train adapters on them, or choose the same model in full precision."
        ) from error


def save_as_plain(described: "PretrainedConfig | None", model: Any, config: ModelConfig) -> str | None:
    """Make weights that were de-quantized be saved as they are now; a line about them, or None for other models.

    transformers would undo on saving what it did on loading, and write quantized weights without stating it in
    config.json. Without a GPU that computes with quantized weights, it de-quantizes those of some methods itself.
    """
    method = quantization_method(described) if described is not None else None
    if method is None or config.gguf_file is not None or getattr(model, "hf_quantizer", None) is not None:
        return None
    model._weight_conversions = None
    why = "dequantize: true" if config.dequantize else "this device cannot compute with them"
    return (
        f"{config.model_name_or_path}: its weights are quantized by {method} (config.json), and were de-quantized to "
        f"{str(model.dtype).removeprefix('torch.')} ({why}). What is saved is in full precision."
    )


def check_quantized_weights_can_train(
    model: Any, path: str, *, has_adapters: bool, is_to_be_sharded: bool = False
) -> None:
    """Check that weights which are quantized in their files can be trained.

    Raises:
        ModelError: if the method does not allow it, there are no adapters, or they are to be sharded.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return
    method = quantization_method(model.config)
    found = f"model_name_or_path: {path} is quantized by {method} (config.json)"
    plain = "choose the same model in full precision"
    plain = f"write dequantize: true, or {plain}" if method and _can_dequantize(method) else plain
    if not quantizer.is_trainable:
        raise ModelError(f"{found}, which cannot be trained. {plain.capitalize()}.")
    if not has_adapters and not quantizer.is_qat_trainable:
        raise ModelError(f"{found}: only adapters can be trained. Add lora_config, or {plain}.")
    if is_to_be_sharded and not all(map(_is_unquantized, model.parameters())):
        raise ModelError(
            f"{found}, and fsdp cannot shard quantized weights. Remove fsdp: each process then holds all weights. Or "
            f"{plain}."
        )


def _is_unquantized(weight: torch.nn.Parameter) -> bool:
    return type(weight) is torch.nn.Parameter and weight.dtype in (torch.float32, torch.bfloat16, torch.float16)


def _takes_field(method: str) -> bool:
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    return kind is not None and "dequantize" in inspect.signature(kind).parameters


def _can_dequantize(method: str) -> bool:
    return _takes_field(method) or method == "bitsandbytes"
