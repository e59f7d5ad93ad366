"""Loads the models of a chat."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sft.commands.chat.options import MODEL_BEFORE_TRAINING, ChatOptions
from sft.commands.chat.responder import Responder
from sft.commands.model_loading import (
    check_vocabulary,
    load_saved_model,
    load_saved_tokenizer,
    resolve_device,
    saved_dtype,
)
from sft.commands.saved_models import SavedModel, find_saved_model, model_before_training, quantization_of_training
from sft.common.errors import ConfigError, ModelError
from sft.configuration.schema import QuantizationConfig
from sft.modeling.merging import merge_adapters
from sft.prompting.template_kwargs import kwargs_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.chat")


def load_responders(options: ChatOptions) -> list[Responder]:
    """Load the model, preceded by the one that it is compared with, if any.

    Raises:
        UserError: if one of them cannot be loaded, or options contradict each other.
    """
    saved = find_saved_model(options.model, base=options.base, trust_remote_code=options.trust_remote_code)
    quantization = _quantization(saved, options.load_in_4bit)
    if options.merge:
        _check_merge(saved, quantization)
    compared = None
    if options.compare is not None:
        is_implied = options.compare == MODEL_BEFORE_TRAINING
        name_or_path = model_before_training(saved) if is_implied else options.compare
        compared = find_saved_model(name_or_path, trust_remote_code=options.trust_remote_code)
    tokenizer = load_saved_tokenizer(saved)
    is_chat = _is_chat(tokenizer, options)
    model = _load(saved, options, quantization)
    if options.merge:
        model = merge_adapters(model)
    check_vocabulary(model, tokenizer, saved.name_or_path)
    kwargs = saved.record.settings.get("chat_template_kwargs") or {}
    if kwargs and is_chat:
        logger.info("The chat template gets the arguments of the run: %s.", kwargs_key(kwargs))
    if is_chat and options.system is None and saved.record.settings.get("system_prompt"):
        logger.info("The model was trained with a system prompt (system_prompt of the run): give it with --system.")
    name = "model" if compared is None else "tuned"
    tuned = Responder(model, tokenizer, name=name, is_chat=is_chat, template_kwargs=kwargs)
    if compared is None:
        return [tuned]
    return [_load_compared(compared, saved, model, tokenizer, options, is_chat=is_chat, template_kwargs=kwargs), tuned]


def _load_compared(
    compared: SavedModel,
    saved: SavedModel,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    options: ChatOptions,
    *,
    is_chat: bool,
    template_kwargs: Mapping[str, Any],
) -> Responder:
    """Load the model to compare with; if it is the base model, the adapters are disabled instead."""
    shares_model = compared.name_or_path == saved.base and not options.merge
    own_tokenizer = load_saved_tokenizer(compared)
    other = model if shares_model else _load(compared, options, _quantization(compared, options.load_in_4bit))
    if is_chat and not own_tokenizer.chat_template:
        logger.info(
            "%s has no chat template: the one of %s is used for both.", compared.name_or_path, saved.name_or_path
        )
        own_tokenizer.chat_template = tokenizer.chat_template
    check_vocabulary(other, own_tokenizer, compared.name_or_path)
    during_generation = model.disable_adapter if shares_model else nullcontext
    return Responder(
        other,
        own_tokenizer,
        name="base",
        is_chat=is_chat,
        during_generation=during_generation,
        template_kwargs=template_kwargs,
    )


def _load(saved: SavedModel, options: ChatOptions, quantization: QuantizationConfig | None) -> Any:
    """Load a model onto its device, and log its precision and device."""
    device = resolve_device(options.device)
    dtype = options.dtype
    if dtype == "auto":
        dtype = saved_dtype(saved) if device != "cpu" else "float32"
    model = load_saved_model(saved, dtype=dtype, device=device, quantization=quantization)
    precision = dtype
    if quantization is not None:
        precision = "4-bit weights" if quantization.load_in_4bit else "8-bit weights"
    description = f"{saved.name_or_path}, adapters on {saved.base}" if saved.is_adapters else saved.name_or_path
    merged = ", merged" if options.merge and saved.is_adapters else ""
    logger.info("%s%s: %s on %s.", description, merged, precision, device)
    return model


def _quantization(saved: SavedModel, load_in_4bit: bool | None) -> QuantizationConfig | None:
    """Return the quantization that was asked for, or else that of the base model in training."""
    in_training = quantization_of_training(saved)
    if load_in_4bit is None:
        return in_training
    if not load_in_4bit:
        return None
    if in_training is not None:
        return replace(in_training, load_in_4bit=True, load_in_8bit=False)
    return QuantizationConfig(load_in_4bit=True)


def _check_merge(saved: SavedModel, quantization: QuantizationConfig | None) -> None:
    if not saved.is_adapters:
        raise ConfigError(
            f"command line: --merge: {saved.name_or_path} is a full model without adapters; remove --merge."
        )
    if quantization is not None:
        raise ConfigError(
            "command line: --merge: merging into quantized weights would round them again. Remove --merge, or add "
            "--no-load_in_4bit to load the base model in full precision."
        )


def _is_chat(tokenizer: "PreTrainedTokenizerBase", options: ChatOptions) -> bool:
    is_chat = bool(tokenizer.chat_template) and not options.plain
    if not is_chat and options.system is not None:
        reason = "--plain continues text" if options.plain else f"{options.model} has no chat template"
        raise ModelError(f"command line: --system requires a chat model, but {reason}.")
    return is_chat
