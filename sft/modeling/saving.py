"""Saving models and adapters."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft.configuration.schema import ModelConfig
from sft.modeling.processor_files import copy_processor_files
from sft.modeling.saved_folder import finish_saved_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def make_adapters_portable(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", output_dir: str, config: ModelConfig
) -> None:
    """Make adapters name a base model, and its revision, that can be loaded from anywhere; call before the first save.

    A relative path would only work in the current directory. A GGUF file cannot be named at all, so the base is saved
    once as ordinary weights beside the adapters.
    """
    if not hasattr(model, "peft_config"):
        return
    peft_config: Any = model.peft_config["default"]
    named = peft_config.base_model_name_or_path
    if config.gguf_file is not None:
        base = Path(os.path.realpath(output_dir), "base_model")
        peft_config.base_model_name_or_path = str(base)
        if not (base / "config.json").is_file():
            logger.info("Saving the base model as safetensors in %s: adapters cannot name a GGUF file as base.", base)
            _save_base_of_adapters(model, tokenizer, base)
    elif named is not None and os.path.isdir(named):
        peft_config.base_model_name_or_path = os.path.abspath(named)
    else:
        peft_config.revision = config.model_revision


def save_final_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    output_dir: str,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save a model (or its adapters), the tokenizer with its chat template, and the generation config.

    Args:
        model, tokenizer: what to save.
        output_dir: the folder to save to.
        weights: full weights to save instead of the model's own, where these are sharded.
    """
    model.save_pretrained(output_dir, state_dict=weights)
    if hasattr(model, "peft_config"):
        model.generation_config.save_pretrained(output_dir)
    else:
        copy_processor_files(model, output_dir)
    tokenizer.save_pretrained(output_dir)
    finish_saved_folder(output_dir, tokenizer)


def _save_base_of_adapters(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Save the frozen model without its adapters."""
    base = model.get_base_model()
    weights = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    base.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    finish_saved_folder(folder, tokenizer)
