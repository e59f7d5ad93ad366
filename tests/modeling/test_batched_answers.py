"""Answers in batches are those that each prompt gets alone."""

from __future__ import annotations

import pytest
import torch

from sft.modeling.answering import answer_prompt
from sft.modeling.batched_answers import answer_in_batches
from tests.support.small_models import POSITIONS, build_model, build_tokenizer


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_of_all_sizes(architecture, batch_size):
    torch.manual_seed(3)
    model, tokenizer = build_model(architecture).train(), build_tokenizer()
    lengths = [1, 5, 2, 30, 9, 9, 17, 3, 60, 4, 110]  # the last leaves less room where positions are learned
    prompts = [torch.randint(3, 300, (length,)).tolist() for length in lengths]
    ends = [int(tokenizer.eos_token_id), *range(5, 390, 9)]
    found = answer_in_batches(model, tokenizer, prompts, eos_token_ids=ends, max_new_tokens=24, batch_size=batch_size)
    assert model.training
    positions = POSITIONS if architecture == "gpt2" else None
    for ids, answer in zip(prompts, found, strict=True):
        alone = answer_in_batches(model, tokenizer, [ids], eos_token_ids=ends, max_new_tokens=24, batch_size=1)[0]
        assert answer == alone
    assert architecture == "gpt2" or any(answer.ended for answer in found)
    if positions is not None:
        assert not answer_in_batches(
            model, tokenizer, [[3] * positions], eos_token_ids=ends, max_new_tokens=4, batch_size=2
        )[0].text
    same = answer_prompt(
        model, tokenizer, "Hello there", max_new_tokens=9, eos_token_ids=ends, add_special_tokens=False
    )
    ids = tokenizer("Hello there", add_special_tokens=False)["input_ids"]
    assert same in answer_in_batches(
        model, tokenizer, [ids, *prompts[:6]], eos_token_ids=ends, max_new_tokens=9, batch_size=batch_size
    )
