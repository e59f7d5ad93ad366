"""Saved models for tests: adapters as a run would have saved them, a model that never stops, and their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sft.common.shown_rows import SamplePrompt
from sft.modeling.answering import answer_prompts
from tests.support.small_models import POSITIONS, build_model, build_tokenizer

IDS = [[1, 40, 77, 300, 12, 5, 260, 8, 99, 31]]
"""A row of token ids."""
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
    """Save a chat model that repeats one token, a control character for a terminal; returns its folder."""
    model = build_model("llama")
    model.model.norm.weight.data.zero_()  # all scores are alike then, and the first token is the likeliest
    model.config.max_position_embeddings = 1000 * POSITIONS
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<|endoftext|>", ESCAPE.replace("\x1b", "\\u001b")))
    return str(folder)


QUESTION = "What comes after one?"


def greedy_answer(model, tokenizer, question=QUESTION, *, system=None):
    begin = ({"role": "system", "content": system},) if system else ()
    prompt = SamplePrompt(messages=(*begin, {"role": "user", "content": question}))
    return answer_prompts(model, tokenizer, [prompt], [2], 8)[0].text + "\n"


def loaded(folder, adapters=None):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters)
    return model, AutoTokenizer.from_pretrained(folder)
