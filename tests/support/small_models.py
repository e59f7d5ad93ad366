"""Small models: a tokenizer trained on a few sentences, and random models of several architectures."""

from __future__ import annotations

from typing import Any

from tests.support.paths import REPOSITORY

CHATML = (REPOSITORY / "sft" / "prompting" / "templates" / "chatml.jinja").read_text(encoding="utf-8")
VOCABULARY = 400
POSITIONS = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
"""Fields of the configuration of a small model, as most architectures of transformers name them."""
ARCHITECTURES = ("gpt2", "llama", "qwen2", "phi3", "gemma2")
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? Paris is the capital of France.",
    "Two plus two is four, and four plus four is eight.",
    "Please write the number that comes after seven: eight.",
    "User: hello Assistant: good morning, how are you today?",
]
QUESTIONS = [
    ("What comes after one?", "Two comes after one."),
    ("What is the capital of France?", "Paris."),
    ("Say hello.", "Hello, how are you today?"),
    ("How much is two plus two?", "Two plus two is four."),
]


def build_tokenizer(chat_template: str | None = CHATML, **special: str) -> Any:
    """A byte-level BPE tokenizer trained on a few sentences; ChatML's markers are special tokens of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    special = special or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = chat_template
    return wrapped


def build_model(architecture: str) -> Any:
    """A random model of 2 layers, the same numbers each time."""
    import torch
    import transformers as t

    size = {**SIZES, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    gpt2 = {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(0)
    if architecture == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**gpt2))
    if architecture == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**size))
    if architecture == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**size, tie_word_embeddings=True))
    if architecture == "phi3":
        return t.Phi3ForCausalLM(t.Phi3Config(**size, original_max_position_embeddings=POSITIONS))
    if architecture == "bloom":  # its positions are not those of documents, so it cannot be packed
        few = {key: size[key] for key in ("vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id")}
        return t.BloomForCausalLM(t.BloomConfig(**few, n_layer=2, n_head=4))
    if architecture == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**size, head_dim=8, sliding_window=64))
    raise ValueError(architecture)


def with_random_adapters(model: Any) -> Any:
    """The model, with its adapters' second matrices random: they start at zero, which leaves nothing to compare."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1)
    return model
