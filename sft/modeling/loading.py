"""Loading a model: weights, quantization, adapters."""

from __future__ import annotations

import io
import logging
from collections.abc import Collection
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sft.common.errors import ConfigError, ModelError, one_line
from sft.common.run_records import DistributedContext, Precision
from sft.common.text import counted, first_of
from sft.configuration.schema import LoRAConfig, ModelConfig, QuantizationConfig
from sft.modeling.architecture import (
    auto_class,
    base_of_adapters,
    text_part_line,
    why_adapters_not_causal_lm,
    why_not_causal_lm,
)
from sft.modeling.loading_errors import readable_loading_errors
from sft.modeling.mapped_weights import is_mapped, mappable_dtype
from sft.modeling.prediction_heads import left_out_line, prediction_heads
from sft.modeling.published_quantization import dequantize_loaded, dequantizing_options, save_as_plain
from sft.modeling.quantization import bitsandbytes_config, prepare_quantized_model, unquantized_experts_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("sft.model")


def load_pretrained_model(
    config: ModelConfig,
    lora: LoRAConfig | None,
    quantization: QuantizationConfig | None,
    precision: Precision,
    context: DistributedContext,
    *,
    gradient_checkpointing: bool = False,
    adapters_from: Path | None = None,
    is_to_be_sharded: bool = False,
) -> "PreTrainedModel":
    """Load the model, quantized and with adapters where the settings ask for it.

    Adapters are put on the same modules as those of the checkpoint `adapters_from`, which is to be resumed. Weights of
    a model that is to be sharded may still have the dtype of their files (see `mapped_weights`).

    Raises:
        ModelError: if the model is no causal language model, cannot be loaded, or lacks the target of an adapter.
        ConfigError: if `attn_implementation` cannot be used.
    """
    described = _check_architecture(config)
    options = _loading_options(config, quantization, precision, context)
    if quantization is not None and described is not None:
        of_experts = unquantized_experts_line(described, precision)
        if of_experts is not None:
            logger.info(of_experts)
    maps = is_to_be_sharded and lora is None and quantization is None and config.gguf_file is None
    mapped = mappable_dtype(described, options["dtype"]) if maps else None
    if config.dequantize:
        options |= dequantizing_options(described, config.model_name_or_path)
    model, unused = _load_weights(config, _loader(config, described), options, mapped)
    if config.dequantize:
        dequantize_loaded(model, config.model_name_or_path)
    line = described and text_part_line(described, model)
    heads = prediction_heads(config.model_name_or_path, model.config, config.model_revision)
    line = line or _unused_line(config.model_name_or_path, set(unused) - set(heads))
    plain = save_as_plain(described, model, config)
    for each in filter(None, [left_out_line(config.model_name_or_path, heads), line, plain]):
        logger.info(each)
    if config.gguf_file is not None:
        _clear_gguf_quantization(model)
    if getattr(model, "hf_quantizer", None) is None:
        _check_finite(model, config.model_name_or_path)
    if quantization is not None:
        model = prepare_quantized_model(model, is_mixed=precision.mixed != "no")
    if lora is not None:
        from sft.modeling.text_adapters import add_text_adapters  # imports peft too

        model = add_text_adapters(model, lora, resumed=adapters_from)
        if gradient_checkpointing:
            # The frozen embedding's output requires no gradient, but the input of a checkpointed layer must.
            model.enable_input_require_grads()
    return model


def _loading_options(
    config: ModelConfig, quantization: QuantizationConfig | None, precision: Precision, context: DistributedContext
) -> dict[str, Any]:
    """The options of `from_pretrained` that follow from the settings."""
    options: dict[str, Any] = {
        "dtype": getattr(torch, precision.weights),
        "trust_remote_code": config.trust_remote_code,
        "revision": config.model_revision or "main",
    }
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    if config.gguf_file is not None:
        options["gguf_file"] = config.gguf_file
    if quantization is not None:
        options["quantization_config"] = bitsandbytes_config(quantization, precision)
        # Each process holds the full model on its own device; `auto` would split it over all (accelerate#2713).
        options["device_map"] = {"": context.device}
    return options


def _check_architecture(config: ModelConfig) -> "PretrainedConfig | None":
    """The model's config.json; None if it cannot be read.

    Raises:
        ModelError: if it describes another kind of model than a causal language model.
    """
    options = {"gguf_file": config.gguf_file} if config.gguf_file is not None else {}
    with readable_loading_errors("model", config.model_name_or_path):
        try:
            found = AutoConfig.from_pretrained(
                config.model_name_or_path,
                revision=config.model_revision or "main",
                trust_remote_code=config.trust_remote_code,
                **options,
            )
        except Exception:
            found = None  # loading the weights reports it, or finds the base model of adapters
    if found is None:
        problem = why_adapters_not_causal_lm(config.model_name_or_path, config.model_revision)
    else:
        problem = why_not_causal_lm(found)
    if problem is not None:
        raise ModelError(f"model_name_or_path: {config.model_name_or_path} {problem}")
    return found


def _loader(config: ModelConfig, described: "PretrainedConfig | None") -> Any:
    """The auto class of transformers for a model, or for the base model of adapters."""
    base = None if described is not None else base_of_adapters(config.model_name_or_path, config.model_revision)
    found = described or (base and base[1])
    return (found and auto_class(found)) or AutoModelForCausalLM


def _unused_line(path: str, names: Collection[str]) -> str | None:
    """A line for the log about tensors in the files that the model does not have, such as those of further layers."""
    if not names:
        return None
    return (
        f"{path}: {counted(len(names), 'tensor')} of the weights do not belong to the model that config.json "
        f"describes, and are not trained: {first_of(sorted(names)[:3], len(names))}."
    )


def _load_weights(
    config: ModelConfig, loader: Any, options: dict[str, Any], mapped_dtype: torch.dtype | None
) -> tuple[Any, Collection[str]]:
    """Load the model and check that no weight is missing; also the names of weights that it does not have.

    Args:
        config: the model section.
        loader: the auto class of transformers.
        options: of `from_pretrained`.
        mapped_dtype: dtype of the weights' files, which weights keep where they can be cast later.

    Raises:
        ModelError: if the files cannot be read, or lack some of the weights.
        ConfigError: if `attn_implementation` is the cause.
    """
    # The GGUF reader shows a progress bar that cannot be disabled.
    quiet = redirect_stderr(io.StringIO()) if config.gguf_file else nullcontext()
    try:
        with readable_loading_errors("model", config.model_name_or_path), quiet:
            loaded: Any = loader.from_pretrained(
                config.model_name_or_path,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **(options if mapped_dtype is None else {**options, "dtype": mapped_dtype}),
            )
            model, loading = loaded
    except ModelError as error:
        cause = error.__cause__
        if config.attn_implementation and cause is not None and config.attn_implementation in str(cause):
            raise ConfigError(
                f"attn_implementation: {config.attn_implementation} cannot be used here: {one_line(cause)}"
            ) from error
        raise
    if mapped_dtype is not None:
        if not is_mapped(model, config.model_name_or_path, mapped_dtype, config.model_revision):
            del model, loaded
            return _load_weights(config, loader, options, None)
        model.config.dtype = options["dtype"]
    if loading["mismatched_keys"]:
        name, saved, expected = min(loading["mismatched_keys"])
        others = counted(len(loading["mismatched_keys"]), "tensor")
        raise ModelError(
            f"{config.model_name_or_path}: config.json and the weights do not belong together: {others} with another "
            f"shape, for example {name}, which is {list(saved)} instead of {list(expected)}. Download the model again."
        )
    if loading["missing_keys"]:
        # transformers initializes them at random with no more than a warning.
        missing = sorted(loading["missing_keys"])
        raise ModelError(
            f"{config.model_name_or_path}: the weights lack {len(missing)} tensors of the model, {missing[0]} among "
            "them. The files do not belong to its config.json, or are incomplete."
        )
    return model, loading["unexpected_keys"]


def _check_finite(model: Any, path: str) -> None:
    """Check that no weight is NaN or inf: every step would be skipped, and the file would be looked at last.

    Raises:
        ModelError: with the name of the first one.
    """
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or weight.detach().sum(dtype=torch.float32).isfinite():
            continue
        count = int((~weight.detach().isfinite()).sum())  # 0 if only the sum is too large
        if count:
            raise ModelError(
                f"{path}: {name} contains {counted(count, 'value')} that are NaN or inf, of {weight.numel():,} "
                f"({str(weight.dtype).removeprefix('torch.')}). The weights are damaged, or too large for this type: "
                "download the model again, or choose another."
            )


def _clear_gguf_quantization(model: Any) -> None:
    """Remove the mark of quantization: the weights are plain floats now, and could not be saved or trained with it."""
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
