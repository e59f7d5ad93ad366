"""Greedy answers to prompts."""

from __future__ import annotations

import pytest
import torch
import transformers

from sft.common.shown_rows import SamplePrompt
from sft.modeling.answering import answer_prompt, answer_prompts
from tests.support.small_models import POSITIONS, build_model, build_tokenizer


@pytest.mark.parametrize("words", [POSITIONS - 3, POSITIONS, POSITIONS + 40])
def test_answers_end_with_the_positions_that_a_model_has_learned(model_folder, words):

    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder("gpt2"))
    model = build_model("gpt2")
    (token,) = tokenizer(" the")["input_ids"][:1]
    text = tokenizer.decode([token] * words)
    prompt = SamplePrompt(text=text)
    assert len(tokenizer(text)["input_ids"]) == words
    (answer,) = answer_prompts(model, tokenizer, [prompt], [], 8)
    assert not answer.ended
    assert (answer.text == "") == (words >= POSITIONS)


def test_answer_prompt_stops_at_the_end_token_and_keeps_the_mode():
    tokenizer, model = build_tokenizer(), build_model("llama")
    model.train()
    whole = answer_prompt(model, tokenizer, "Two plus", max_new_tokens=8, eos_token_ids=[2], add_special_tokens=False)
    assert model.training
    ids = tokenizer("Two plus", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = int(model.eval()(ids).logits[0, -1].argmax())
    assert not whole.ended
    assert whole.text.startswith(tokenizer.decode([first]))
    stopped = answer_prompt(
        model, tokenizer, "Two plus", max_new_tokens=8, eos_token_ids=[first], add_special_tokens=False
    )
    assert (stopped.text, stopped.ended) == ("", True)


def test_answers_are_greedy_whatever_the_models_settings_ask_for():
    tokenizer, model = build_tokenizer(), build_model("llama")
    how = {"max_new_tokens": 8, "eos_token_ids": [2], "add_special_tokens": False}
    greedy = answer_prompt(model, tokenizer, "Two plus", **how)
    model.generation_config.update(num_beams=10**12, num_return_sequences=4)
    assert answer_prompt(model, tokenizer, "Two plus", **how) == greedy
