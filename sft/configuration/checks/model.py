"""Checks of the model, adapters and quantization."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sft.common.files import NOT_UTF8, is_utf8
from sft.configuration.checks.contradiction import Contradiction, current_directory, did_you_mean_file
from sft.configuration.schema import SFTConfig


def check_model(config: SFTConfig) -> Iterator[Contradiction]:
    """Check paths, dtype, adapters and quantization."""
    model, quantization = config.model, config.quantization
    for key in ("model_name_or_path", "tokenizer_name_or_path"):
        name = getattr(model, key)
        if name and not is_utf8(name):
            yield Contradiction(key, NOT_UTF8.format(path=name))
        elif name and _is_path(name) and not os.path.exists(name):
            yield Contradiction(key, f"no such folder: {name!r} {current_directory()}.{did_you_mean_file(name)}")
    tokenizer = model.tokenizer_name_or_path or model.model_name_or_path
    for key, name in (("model_revision", model.model_name_or_path), ("tokenizer_revision", tokenizer)):
        if getattr(model, key) is not None and (_is_path(name) or os.path.isdir(name)):
            yield Contradiction(
                key, f"{name!r} is a folder, and only a repository on the Hub has revisions; remove it."
            )
    folder = model.model_name_or_path
    if model.gguf_file and os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, model.gguf_file)):
        present = ", ".join(sorted(path.name for path in Path(folder).glob("*.gguf"))) or "none"
        yield Contradiction("gguf_file", f"no such file: {model.gguf_file!r} in {folder}. GGUF files there: {present}.")
    if model.dequantize and (quantization or model.gguf_file):
        other = "quantization_config" if quantization else "gguf_file, whose weights are de-quantized anyway"
        yield Contradiction("dequantize", f"cannot be combined with {other}; choose one.")
    if model.gguf_file and quantization:
        yield Contradiction(
            "gguf_file", "cannot be combined with quantization_config, because its weights are dequantized; choose one."
        )
    if model.dtype == "float16" and config.lora is None:
        yield Contradiction(
            "dtype", "float16 weights cannot be trained; use auto, or add lora_config to train adapters only."
        )
    if config.lora and not config.lora.target_modules and not config.lora.target_parameters:
        yield Contradiction("lora_config.target_modules", "is empty; list module names, or use all-linear.")
    if quantization is None:
        return
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield Contradiction(
            "quantization_config.load_in_8bit", "load_in_4bit and load_in_8bit are mutually exclusive; choose one."
        )
    if not (quantization.load_in_4bit or quantization.load_in_8bit):
        yield Contradiction("quantization_config", "neither load_in_4bit nor load_in_8bit is set; set one to true.")
    elif config.lora is None:
        yield Contradiction(
            "quantization_config", "quantized weights cannot be trained directly; add a lora_config section."
        )


def _is_path(name: str) -> bool:
    """Whether a model's name can only be a local path: a Hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
