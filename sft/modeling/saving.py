"""Saving models and adapters."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def make_adapters_portable(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", output_dir: str, *, gguf_file: str | None
) -> None:
    """Lets the files of adapters name a base that can be loaded from anywhere; called before the first is written.

    A relative path would hold only where this run was started. A GGUF file cannot be named at all, so the base is
    saved once as ordinary weights beside the adapters.
    """
    if not hasattr(model, "peft_config"):
        return
    peft_config = model.peft_config["default"]
    if gguf_file is not None:
        base = Path(output_dir, "base_model").resolve()
        peft_config.base_model_name_or_path = str(base)
        if not (base / "config.json").is_file():
            logger.info("Saving the base as safetensors in %s: adapters cannot name a GGUF file as theirs.", base)
            _save_base_of_adapters(model, tokenizer, base)
    elif os.path.isdir(str(peft_config.base_model_name_or_path)):
        peft_config.base_model_name_or_path = os.path.abspath(peft_config.base_model_name_or_path)


def save_final_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    output_dir: str,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Saves a model (or its adapters), the tokenizer with its chat template, and the generation config.

    Args:
        model, tokenizer: as they are.
        output_dir: where to.
        weights: what to save in place of the model's own, which lie spread over processes.
    """
    model.save_pretrained(output_dir, state_dict=weights)
    if hasattr(model, "peft_config"):
        model.generation_config.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def _save_base_of_adapters(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """The frozen model as if it had never had adapters."""
    base = model.get_base_model()
    weights = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    base.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
