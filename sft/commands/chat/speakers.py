"""Who answers: the models of a talk, loaded."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sft.commands.chat.options import BASE_BEFORE_TRAINING, TalkOptions
from sft.commands.chat.speaker import Speaker
from sft.commands.saved_models import (
    SavedModel,
    base_before_training,
    check_vocabulary,
    find_saved_model,
    load_saved_model,
    load_saved_tokenizer,
    quantization_of_training,
    resolve_device,
    saved_dtype,
)
from sft.common.errors import ConfigError, ModelError
from sft.configuration.schema import QuantizationConfig
from sft.modeling.merging import merge_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.talk")


def load_speakers(options: TalkOptions) -> list[Speaker]:
    """The model that was named, and before it the one that it is compared with.

    Raises:
        UserError: if one of them cannot be loaded, or the options exclude each other.
    """
    saved = find_saved_model(options.model, base=options.base, trust_remote_code=options.trust_remote_code)
    quantization = _quantization(saved, options.load_in_4bit)
    if options.merge:
        _check_merge(saved, quantization)
    compared = None
    if options.compare is not None:
        named = options.compare
        place = base_before_training(saved) if named == BASE_BEFORE_TRAINING else named
        compared = find_saved_model(place, trust_remote_code=options.trust_remote_code)
    tokenizer = load_saved_tokenizer(saved)
    is_chat = _is_chat(tokenizer, options)
    model = _load(saved, options, quantization)
    if options.merge:
        model = merge_adapters(model)
    check_vocabulary(model, tokenizer, saved.place)
    tuned = Speaker(model, tokenizer, name="model" if compared is None else "tuned", is_chat=is_chat)
    if compared is None:
        return [tuned]
    return [_load_compared(compared, saved, model, tokenizer, options, is_chat=is_chat), tuned]


def _load_compared(
    compared: SavedModel,
    saved: SavedModel,
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    options: TalkOptions,
    *,
    is_chat: bool,
) -> Speaker:
    """The second speaker: its own model, or the first one's with its adapters switched off."""
    shares_model = compared.place == saved.base and not options.merge
    own_tokenizer = load_saved_tokenizer(compared)
    other = model if shares_model else _load(compared, options, _quantization(compared, options.load_in_4bit))
    if is_chat and not own_tokenizer.chat_template:
        logger.info("%s has no chat template: it is asked with that of %s.", compared.place, saved.place)
        own_tokenizer.chat_template = tokenizer.chat_template
    check_vocabulary(other, own_tokenizer, compared.place)
    without_adapters = model.disable_adapter if shares_model else nullcontext
    return Speaker(other, own_tokenizer, name="base", is_chat=is_chat, while_it_speaks=without_adapters)


def _load(saved: SavedModel, options: TalkOptions, quantization: QuantizationConfig | None) -> Any:
    """A model on its device; says in the log what it is."""
    device = resolve_device(options.device)
    dtype = options.dtype
    if dtype == "auto":
        dtype = saved_dtype(saved) if device != "cpu" else "float32"
    model = load_saved_model(saved, dtype=dtype, device=device, quantization=quantization)
    precision = dtype
    if quantization is not None:
        precision = "4-bit weights" if quantization.load_in_4bit else "8-bit weights"
    what = f"{saved.place}, adapters on {saved.base}" if saved.is_adapters else saved.place
    merged = ", merged" if options.merge and saved.is_adapters else ""
    logger.info("%s%s: %s on %s.", what, merged, precision, device)
    return model


def _quantization(saved: SavedModel, load_in_4bit: bool | None) -> QuantizationConfig | None:
    """As asked for; else as the base was when adapters were trained on it."""
    trained = quantization_of_training(saved)
    if load_in_4bit is None:
        return trained
    if not load_in_4bit:
        return None
    if trained is not None:
        return replace(trained, load_in_4bit=True, load_in_8bit=False)
    return QuantizationConfig(load_in_4bit=True)


def _check_merge(saved: SavedModel, quantization: QuantizationConfig | None) -> None:
    if not saved.is_adapters:
        raise ConfigError(f"command line: --merge: {saved.place} is a whole model, there is nothing to merge.")
    if quantization is not None:
        raise ConfigError(
            "command line: --merge into quantized weights would round them once more. Leave it out, or add "
            "--no-load_in_4bit (the base in full precision)."
        )


def _is_chat(tokenizer: "PreTrainedTokenizerBase", options: TalkOptions) -> bool:
    is_chat = bool(tokenizer.chat_template) and not options.plain
    if not is_chat and options.system is not None:
        reason = "--plain continues text" if options.plain else f"{options.model} has no chat template"
        raise ModelError(f"command line: --system needs a chat, and {reason}.")
    return is_chat
