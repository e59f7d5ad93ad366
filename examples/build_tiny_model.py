"""Builds the tiny chat model in ``examples/tiny-chat`` from nothing.

The script generates its own training text (see ``tiny_corpus.py``), trains a byte-level BPE tokenizer on it,
pretrains a Llama model of about two million parameters and saves both, with a model card. It needs no network.

    python examples/build_tiny_model.py --output_dir examples/tiny-chat

This takes about 10 minutes on two CPU cores. ``--smoke`` builds a useless but loadable model in a few seconds.
The same machine and library versions give the same weights: seeds and the number of threads are fixed, and only
deterministic algorithms are used. Other processors may round differently.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from sentencepiece_file import write_sentencepiece_file
from tiny_corpus import Document, generate
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sft.modeling.saved_folder import finish_saved_folder

logger = logging.getLogger("build_tiny_model")

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings of one build.

    Attributes:
        documents: Number of generated training documents.
        held_out: Number of generated documents for the held-out loss.
        vocab_size: Upper bound of the tokenizer's vocabulary.
        hidden_size: Width of the model.
        layers: Number of transformer layers.
        steps: Number of optimizer steps.
        tokens_per_batch: Upper bound of the padded tokens of one batch.
        learning_rate: Peak learning rate, reached after the warm-up.
        seed: Seed of the text, the weights and the batch order.
        threads: Number of CPU threads; part of the recipe because sums depend on it.
    """

    documents: int = 60_000
    held_out: int = 500
    vocab_size: int = 2048
    hidden_size: int = 192
    layers: int = 4
    steps: int = 1_700
    tokens_per_batch: int = 2_048
    learning_rate: float = 3e-3
    seed: int = 7
    threads: int = 2


SMOKE = Recipe(documents=300, held_out=40, vocab_size=512, hidden_size=32, layers=1, steps=5)


def render(document: Document) -> str:
    """Renders a document as the model sees it.

    Args:
        document: A plain text or a chat from the generator.

    Returns:
        Chats in the format of the chat template; texts closed by the end-of-text token.
    """
    if "text" in document:
        return document["text"] + END_OF_TEXT
    turns = (f"{TURN_START}{turn['role']}\n{turn['content']}{TURN_END}\n" for turn in document["messages"])
    return "".join(turns)


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the byte-level BPE tokenizer.

    Args:
        texts: Rendered documents.
        vocab_size: Upper bound of the vocabulary, special tokens included.

    Returns:
        The tokenizer with the chat template.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, TURN_START, TURN_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # A lower bound keeps pieces of the made-up names out of the vocabulary.
        min_frequency=5,
        special_tokens=specials,
        # All bytes, so that any text can be written, also in letters that the corpus lacks.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        add_prefix_space=False,  # for llama.cpp, which adds a space otherwise
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Creates the untrained model.

    Args:
        recipe: Sizes of the model.
        tokenizer: Defines the vocabulary and the special tokens.

    Returns:
        A model with random weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.hidden_size * 8 // 3,
        num_hidden_layers=recipe.layers,
        num_attention_heads=max(recipe.hidden_size // 32, 1),
        num_key_value_heads=max(recipe.hidden_size // 96, 1),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def make_batches(rows: list[list[int]], tokens_per_batch: int, rng: random.Random) -> Iterator[list[list[int]]]:
    """Groups rows of similar length into batches, without end.

    Every row starts at position 0, as it does in a chat, and similar lengths keep the padding small.

    Args:
        rows: Token ids of the documents.
        tokens_per_batch: Upper bound of rows times the longest row.
        rng: Source of the order.

    Yields:
        Batches of rows.
    """
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), 2_000):
            pool = sorted(order[start : start + 2_000], key=len)
            batches: list[list[list[int]]] = [[]]
            for row in pool:
                if (len(batches[-1]) + 1) * len(row) > tokens_per_batch and batches[-1]:
                    batches.append([])
                batches[-1].append(row)
            rng.shuffle(batches)
            yield from batches


def to_tensors(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Pads rows on the right.

    Args:
        rows: Token ids.
        pad: The padding id; its positions get no loss.

    Returns:
        Keyword arguments of the model.
    """
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows])
    # Causal attention never looks right, so padding on the right needs no attention mask.
    return {"input_ids": ids, "labels": labels}


def learning_rate_factor(step: int, steps: int) -> float:
    """Computes the warm-up and cosine schedule.

    Args:
        step: The current step, from 0.
        steps: The total number of steps.

    Returns:
        The factor of the peak learning rate; it ends at 0.02.
    """
    warm_up = max(1, min(100, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def pretrain(model: LlamaForCausalLM, rows: list[list[int]], recipe: Recipe) -> None:
    """Trains the model on next-token prediction.

    Args:
        model: The model; changed in place.
        rows: Token ids of the training documents.
        recipe: Settings of the training.
    """
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe.steps))
    batches = make_batches(rows, recipe.tokens_per_batch, random.Random(recipe.seed))
    started = time.monotonic()
    model.train()
    for step in range(1, recipe.steps + 1):
        loss = model(**to_tensors(next(batches), model.config.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0 or step == recipe.steps:
            logger.info("step %d of %d: loss %.3f, %.0f s", step, recipe.steps, loss.item(), time.monotonic() - started)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: list[list[int]]) -> float:
    """Measures the mean loss per token on rows that were not trained on.

    Args:
        model: The trained model.
        rows: Token ids of the held-out documents.

    Returns:
        The mean cross-entropy in nats.
    """
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        count = sum(len(row) - 1 for row in part)
        total += model(**to_tensors(part, model.config.pad_token_id)).loss.item() * count
        tokens += count
    return total / tokens


MODEL_CARD = """\
---
license: mit
language: en
pipeline_tag: text-generation
---

# tiny-chat

A Llama-architecture chat model with {parameters:,} parameters, small enough to ship with this repository. It exists so
that the fine-tuning pipeline can be tried and tested on a laptop, without a download. It is a toy: do not expect
knowledge or reasoning from it.

## How it was made

    python examples/build_tiny_model.py --output_dir examples/tiny-chat

* Text: {documents:,} generated documents (short stories, simple facts, lists, quotes, small chats) from
  `examples/tiny_corpus.py`. All text is made by that program; none was collected.
* Tokenizer: byte-level BPE, {vocab:,} tokens, trained on the same text; `tokenizer.model` has the same
  tokens for llama.cpp.
* Model: {layers} layers, width {hidden}, {heads} heads ({kv_heads} for keys and values), tied embeddings, {positions}
  positions; stored as float16.
* Training: {steps:,} steps of at most {tokens:,} tokens, AdamW, peak learning rate {rate:g}, warm-up and cosine, seed
  {seed}, {threads} CPU threads.
* Held-out loss: **{loss:.3f}** nats per token (perplexity {perplexity:.2f}), measured with the stored float16 weights
  on {held_out} generated documents that were not part of the training text. They come from the same generator, so this
  says nothing about other text.

## Chat format

ChatML-like: `<|im_start|>role\\n...<|im_end|>\\n` for each turn; the generation prompt is `<|im_start|>assistant\\n`. A
system turn is optional. The end-of-sequence token is `<|im_end|>`, the padding token is `<|endoftext|>`, and no
begin-of-sequence token is added.

## Limits

* It knows a few hundred English words. Other words are split into single letters and often miscopied.
* It was trained on documents of up to a few hundred tokens; longer chats will go wrong.
* It can state false things fluently, and it has had no safety training.

## Licence

MIT, for the weights, the tokenizer and the generated text.
"""


def model_card(model: LlamaForCausalLM, recipe: Recipe, loss: float) -> str:
    """Writes the model card.

    Args:
        model: The trained model.
        recipe: The settings of the build.
        loss: The held-out loss.

    Returns:
        The card in Markdown.
    """
    config = model.config
    return MODEL_CARD.format(
        parameters=model.num_parameters(),
        documents=recipe.documents,
        vocab=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        positions=config.max_position_embeddings,
        steps=recipe.steps,
        tokens=recipe.tokens_per_batch,
        rate=recipe.learning_rate,
        seed=recipe.seed,
        threads=recipe.threads,
        loss=loss,
        perplexity=math.exp(loss),
        held_out=recipe.held_out,
    )


def build(recipe: Recipe, output_dir: Path) -> float:
    """Builds, trains and saves tokenizer, model and model card.

    Args:
        recipe: The settings of the build.
        output_dir: Folder for the result; created if it does not exist.

    Returns:
        The held-out loss of the stored weights.
    """
    torch.manual_seed(recipe.seed)
    texts = [render(document) for document in generate(recipe.documents, recipe.seed)]
    known = set(texts)
    fresh = [render(document) for document in generate(4 * recipe.held_out, recipe.seed + 1)]
    # Short documents can come out twice; those must not count as held out.
    held_out = [text for text in fresh if text not in known][: recipe.held_out]
    tokenizer = train_tokenizer(texts[:20_000], recipe.vocab_size)
    rows, held_out_rows = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (texts, held_out))
    model = new_model(recipe, tokenizer)
    logger.info("%d parameters, %d training tokens", model.num_parameters(), sum(map(len, rows)))
    pretrain(model, rows, recipe)

    model.half().float()  # The held-out loss is that of the stored, rounded weights.
    loss = held_out_loss(model, held_out_rows)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    model.half().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_sentencepiece_file(output_dir / "tokenizer.model", tokenizer.get_vocab(), tokenizer.all_special_tokens)
    finish_saved_folder(output_dir, tokenizer)
    (output_dir / "README.md").write_text(model_card(model, recipe, loss), encoding="utf-8")
    logger.info("held-out loss %.4f; saved to %s", loss, output_dir)
    return loss


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
        arguments: The arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Build the tiny chat model from generated text.")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, help="number of optimizer steps, instead of the recipe's")
    parser.add_argument("--smoke", action="store_true", help="build a useless model in a few seconds, as a test")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = SMOKE if options.smoke else Recipe()
    if options.steps is not None:
        recipe = Recipe(**{**vars(recipe), "steps": options.steps})
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(recipe.threads)
    build(recipe, options.output_dir)


if __name__ == "__main__":
    main()
