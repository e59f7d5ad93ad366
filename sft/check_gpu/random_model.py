"""Llama-shaped models of random weights, a tokenizer whose tokens are words, and rows of random words.

The benchmarks use them too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sft.check_gpu.shapes import Shape

NUM_WORDS = 400
_SPECIAL = ("<s>", "</s>", "<user>", "<assistant>", "<unk>")
_TEMPLATE_TOKENS = 4
"""Tokens that the chat template adds to a question and its answer."""


def _configuration(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=shape.is_tied,
        bos_token_id=0,
        eos_token_id=1,
    )


def build_random_model(shape: Shape, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A model of random weights, the same numbers each time on the same kind of device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(_configuration(shape))
    finally:
        torch.set_default_dtype(before)


def save_random_model(shape: Shape, folder: Path, device: str) -> None:
    """Save a model of random bfloat16 weights, made on a device, with the tokenizer."""
    model: Any = build_random_model(shape, device, torch.bfloat16)
    model.to("cpu").save_pretrained(folder)
    _word_tokenizer().save_pretrained(folder)


def save_without_weights(shape: Shape, folder: Path) -> None:
    """Save the configuration of a model, with the tokenizer."""
    _configuration(shape).save_pretrained(folder)
    _word_tokenizer().save_pretrained(folder)


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word `w0`, `w1`, ..., and a chat template."""
    words = {word: number for number, word in enumerate([*_SPECIAL, *(f"w{number}" for number in range(NUM_WORDS))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]  # its stubs lack the setter
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "<user>", "<assistant>"]})
    tokenizer.chat_template = (
        "<s>{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    return tokenizer


def write_random_rows(path: Path, count: int, lengths: Sequence[int]) -> None:
    """Write `count` question/answer rows as JSON Lines; a quarter of each is the question.

    Args:
        path: the file.
        count: number of rows.
        lengths: tokens of the rows, in turn; at least 6.
    """
    words = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = [f"w{words.randrange(NUM_WORDS)}" for _ in range(lengths[number % len(lengths)] - _TEMPLATE_TOKENS)]
            cut = max(len(text) // 4, 1)
            row = {"question": " ".join(text[:cut]), "answer": " ".join(text[cut:])}
            file.write(json.dumps(row) + "\n")
