"""Adapters made in process, as a run would have saved them, and a model that never stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.parts import POSITIONS, build_model, build_tokenizer

ESCAPE = "\x1b[31mred"
"""A token that would turn a terminal's text red."""


def save_adapters(base: str, folder: Path, *, tokenizer: Any = None, noise: float = 0.3, **settings: Any) -> str:
    """LoRA adapters on a saved base, with weights that make a difference; returns their folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokenizer is not None and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": "all-linear", **settings})
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
            parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    (tokenizer or AutoTokenizer.from_pretrained(base)).save_pretrained(folder)
    return str(folder)


def save_endless_model(folder: Path) -> str:
    """A chat model that says one token again and again, one that would act on a terminal; returns its folder."""
    model = build_model("llama")
    model.model.norm.weight.data.zero_()  # all scores are alike then, and the first token is the likeliest
    model.config.max_position_embeddings = 1000 * POSITIONS
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|endoftext|>", ESCAPE.replace("\x1b", "\\u001b")))
    return str(folder)
