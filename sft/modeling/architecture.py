"""Is a model a causal language model, as far as its config.json tells? Asked before gigabytes of weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.peft_utils import find_adapter_config_file

from sft.common.device_errors import reraise_device_error
from sft.common.errors import ModelError
from sft.common.outside_files import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig


_OF_BITSANDBYTES = {"load_in_4bit", "load_in_8bit"}
"""Older files name no method."""
_MOST_LAYERS = 10_000
"""More would be built for hours, one after the other, before the files are compared."""


def num_positions(config: "PretrainedConfig") -> int | None:
    """The positions that a model's configuration states; None if it states none, or -1, which is no limit."""
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions if positions is not None and positions > 0 else None


def values_of_layers(config: "PretrainedConfig", name: str) -> list[Any]:
    """The values of a field that is one number, a list of one for each layer, or set for each layer; none if unset.

    A configuration whose layers differ refuses to give one value for all.
    """
    try:
        value = getattr(config, name, None)
    except RuntimeError:
        value = [getattr(layer, name, None) for layer in config.per_layer_config]
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]


def value_of_layer(config: Any, name: str, index: int | None) -> Any:
    """The value of a field in one layer; None if it is unset."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None if index is None else getattr(config.per_layer_config[index], name, None)


def why_not_causal_lm(config: "PretrainedConfig") -> str | None:
    """What else the model is, after its name, and what to do; None if it can be loaded as a causal language model."""
    name = architecture_name(config)
    method = quantization_method(config)
    known = sorted({each.removesuffix("_4bit").removesuffix("_8bit") for each in AUTO_QUANTIZATION_CONFIG_MAPPING})
    if method is not None and method not in known:
        return (
            f"is quantized by {method!r} (quant_method in config.json), which transformers does not know. Known: "
            f"{', '.join(known)}. Choose the same model in full precision."
        )
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"is an encoder-decoder model ({name}); only decoder-only (causal) language models can be trained here. "
            "Choose one of those."
        )
    if auto_class(config) is not None:
        return _too_many_layers(config)
    inputs = other_inputs(config)
    if inputs:
        return (
            f"is a multimodal model ({name}: {', '.join(inputs)} and text), which transformers does not load as a "
            "causal language model, so it cannot be trained on text here. Choose a text-only model, for example the "
            "language model that it was built from."
        )
    return (
        f"is not a causal language model ({name}): transformers cannot load it with AutoModelForCausalLM. Choose a "
        "decoder-only language model."
    )


def auto_class(config: "PretrainedConfig") -> Any:
    """The class of transformers that loads the whole model with its language head; None if there is none.

    A model of images and text is loaded whole, so that it is saved whole, unless its config.json names the class of the
    text part alone.
    """
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    kind = type(config)
    is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM if is_causal else None
    whole = getattr(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind], "__name__", "")
    is_whole = not is_causal or whole in (getattr(config, "architectures", None) or ())
    return AutoModelForImageTextToText if is_whole else AutoModelForCausalLM


def base_of_adapters(path: str, revision: str | None = None) -> tuple[str, "PretrainedConfig"] | None:
    """The base model of adapters, and its config.json; None if they cannot be found.

    Args:
        path: a folder or a name on the Hub, without a config.json.
        revision: of the repository on the Hub.
    """
    try:
        file = find_adapter_config_file(path, revision=revision)
        settings = read_json(file, ModelError) if file else {}
        base, base_revision = settings.get("base_model_name_or_path"), settings.get("revision")
        return (base, AutoConfig.from_pretrained(base, revision=base_revision or "main")) if base else None
    except Exception as error:  # loading them reports it
        reraise_device_error(error)
        return None


def why_adapters_not_causal_lm(path: str, revision: str | None = None) -> str | None:
    """What the base model of adapters is, after their name, if it is no causal language model; None if not known.

    Args:
        path: a folder or a name on the Hub, without a config.json.
        revision: of the repository on the Hub.
    """
    base = base_of_adapters(path, revision)
    problem = base and why_not_causal_lm(base[1])
    return f"contains adapters on {base[0]}, which {problem}" if base and problem else None


def quantization_method(config: "PretrainedConfig") -> str | None:
    """The method by which the saved weights are quantized; None if they are not."""
    settings = getattr(config, "quantization_config", None)
    settings = settings if isinstance(settings, dict) else getattr(settings, "__dict__", {})
    method = settings.get("quant_method")
    if method is None:
        return None if not settings else "bitsandbytes" if settings.keys() & _OF_BITSANDBYTES else "(none)"
    return str(getattr(method, "value", method))


def _too_many_layers(config: "PretrainedConfig") -> str | None:
    """What is wrong with the number of layers; None if it is plausible."""
    number = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(number, int) or number <= _MOST_LAYERS:
        return None
    return f"has {number:,} layers by its config.json (num_hidden_layers), more than any model. Correct the file."


def text_part_line(config: "PretrainedConfig", model: Any) -> str | None:
    """A line for the log if only the text part of a multimodal model was loaded."""
    inputs = other_inputs(config)
    if not inputs or not isinstance(model.config, type(config.get_text_config())) or config.get_text_config() is config:
        return None
    return (
        f"{architecture_name(config)} is a multimodal model: only its text part, {type(model).__name__}, is loaded, "
        f"trained and saved; the saved model has no part for {' or '.join(inputs)}."
    )


def architecture_name(config: "PretrainedConfig") -> str:
    """The model's class by its config.json, else the type of model."""
    return next(iter(getattr(config, "architectures", None) or ()), None) or config.model_type


def other_inputs(config: "PretrainedConfig") -> list[str]:
    """What the model takes beside text, by the sections of its config.json: `vision`, `audio`."""
    sections = {*getattr(config, "sub_configs", {}), *(key for key in vars(config) if key.endswith("_config"))}
    return sorted(
        name.removesuffix("_config") for name in sections if name.startswith(("vision", "audio", "image", "speech"))
    )
