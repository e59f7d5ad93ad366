"""Greedy answers to many prompts, several at once, with the key-value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sft.common.run_records import Answer
from sft.modeling.answering import generated
from sft.modeling.fitting import num_learned_positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@torch.no_grad()
def answer_in_batches(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    eos_token_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
) -> list[Answer]:
    """The answers to prompts, in their order; each is what the model gives for it alone.

    Prompts of about the same length share a batch, which is padded on the left. Sums of other shapes may be rounded
    differently, which decides a token only where two are as likely to the last bits.

    Args:
        model: any causal language model; its training mode is restored afterwards.
        tokenizer: the model's tokenizer.
        prompts: token ids.
        eos_token_ids: tokens that end an answer.
        max_new_tokens: an answer is cut at this many tokens if no end token comes.
        batch_size: prompts that are answered at once.
    """
    positions, pad = num_learned_positions(model), tokenizer.pad_token_id or 0
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    for batch in _batches(prompts, order, batch_size, None if positions is None else positions - max_new_tokens):
        width = max(len(prompts[index]) for index in batch)
        room = max_new_tokens if positions is None else min(max_new_tokens, positions - width)
        if room < 1:
            answers.update((index, Answer(text="", ended=False)) for index in batch)
            continue
        ids = torch.full((len(batch), width), pad)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(batch):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        output = generated(
            model,
            tokenizer,
            ids.to(model.device),
            mask.to(model.device),
            max_new_tokens=room,
            eos_token_ids=eos_token_ids,
        )
        for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(tokens) if token in eos_token_ids), len(tokens))
            text = str(tokenizer.decode(tokens[:end], skip_special_tokens=False))
            answers[index] = Answer(text=text, ended=end < len(tokens))
    return [answers[index] for index in range(len(prompts))]


def _batches(
    prompts: Sequence[Sequence[int]], order: Sequence[int], batch_size: int, longest: int | None
) -> Iterator[list[int]]:
    """Indices of prompts in batches; one that leaves less room for an answer than others is alone."""
    batch: list[int] = []
    for index in order:
        if longest is not None and len(prompts[index]) > longest:
            if batch:
                yield batch
            batch = []
            yield [index]
            continue
        batch.append(index)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
