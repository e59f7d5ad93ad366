"""Loading a model: precision, quantization, adapters."""

from __future__ import annotations

import io
from contextlib import nullcontext, redirect_stderr
from typing import TYPE_CHECKING, Any

import torch

from sft.common.errors import ConfigError, ModelError, one_line
from sft.common.optional_packages import missing_package
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig, QuantizationConfig
from sft.modeling.adapters import add_adapters
from sft.modeling.loading_errors import readable_loading_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_pretrained_model(
    config: ModelConfig,
    lora: LoRAConfig | None,
    quantization: QuantizationConfig | None,
    precision: Precision,
    context: DistributedContext,
    *,
    gradient_checkpointing: bool = False,
) -> "PreTrainedModel":
    """The model, ready to train: quantized, with adapters, as the settings ask.

    Raises:
        ModelError: if it cannot be loaded, or an adapter's target is not in it.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, precision.weights),
        "trust_remote_code": config.trust_remote_code,
    }
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if config.gguf_file is not None:
        options["gguf_file"] = config.gguf_file
    if quantization is not None:
        options["quantization_config"] = _bitsandbytes_config(quantization, precision)
        # Each process holds the whole model on its own device; `auto` would spread it over all (accelerate#2713).
        options["device_map"] = {"": context.device}
    model = _load_weights(config, options)
    if config.gguf_file is not None:
        _forget_gguf_quantization(model)
    if quantization is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        _keep_4bit_weights_trainable(model)
    if lora is not None:
        model = add_adapters(model, lora)
        if gradient_checkpointing:
            # The frozen embedding's output asks for no gradient, and a checkpointed block needs an input that does.
            model.enable_input_require_grads()
    return model


def _bitsandbytes_config(quantization: QuantizationConfig, precision: Precision) -> Any:
    try:
        import bitsandbytes  # noqa: F401  (transformers needs it; its absence deserves our own line)
        from transformers import BitsAndBytesConfig
    except ImportError:
        raise ModelError(f"quantization_config: {missing_package('bitsandbytes')}.") from None
    compute = quantization.bnb_4bit_compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=quantization.load_in_4bit,
        load_in_8bit=quantization.load_in_8bit,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, precision.weights if compute == "auto" else compute),
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
    )


def _load_weights(config: ModelConfig, options: dict[str, Any]) -> Any:
    """The model with all its weights.

    Raises:
        ModelError: if the files cannot be read, or lack some of the weights.
        ConfigError: if `attn_implementation` is what stands in the way.
    """
    from transformers import AutoModelForCausalLM

    # The GGUF reader draws a progress bar that has no switch.
    quiet = redirect_stderr(io.StringIO()) if config.gguf_file else nullcontext()
    try:
        with readable_loading_errors("model", config.model_name_or_path), quiet:
            model, loading = AutoModelForCausalLM.from_pretrained(
                config.model_name_or_path, output_loading_info=True, **options
            )
    except ModelError as error:
        if config.attn_implementation and config.attn_implementation in str(error.__cause__):
            raise ConfigError(
                f"attn_implementation: {config.attn_implementation} cannot be used here: {one_line(error.__cause__)}"
            ) from error
        raise
    if loading["missing_keys"]:
        # transformers would start them from random numbers, and the model would train, worse, without a word.
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{config.model_name_or_path}: the weights lack {len(missing)} tensors of the model, {missing[0]} among "
            "them. The files do not belong to its config.json, or are incomplete."
        )
    return model


def _keep_4bit_weights_trainable(model: Any) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked form (`Linear4bit.forward`, bitsandbytes 0.50) stays for good, has no backward pass, and fails outright
    for layers narrower than a block of 64: training after an evaluation would get no gradient through these layers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _forget_gguf_quantization(model: Any) -> None:
    """The weights are plain floats by now; still marked as quantized, saving and training would be refused."""
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
