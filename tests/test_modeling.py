"""The loss and the sums that metrics are made of."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import build_model, build_tokenizer

from modeling.answering import answer_prompt
from modeling.supervised_loss import EvaluationSums, supervised_loss_sum


def batch(rows=4, tokens=6, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, vocabulary, generator=generator)
    labels = torch.randint(0, vocabulary, (rows, tokens), generator=generator)
    labels[torch.rand(rows, tokens, generator=generator) < 0.4] = -100
    return logits, labels


def test_supervised_loss_sum_equals_the_sum_by_hand():
    logits, labels = batch()
    log_probabilities = logits.log_softmax(-1)
    expected = -sum(log_probabilities[b, t, labels[b, t]] for b in range(4) for t in range(6) if labels[b, t] != -100)
    torch.testing.assert_close(supervised_loss_sum(logits, labels), expected)


def test_supervised_loss_sum_without_labels_is_zero_and_has_a_gradient():
    logits, labels = batch()
    logits.requires_grad_()
    loss = supervised_loss_sum(logits, torch.full_like(labels, -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_supervised_loss_sum_smooths_as_transformers_does():
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = batch()
    expected = LabelSmoother(epsilon=0.1)({"logits": logits}, labels) * (labels != -100).sum()
    torch.testing.assert_close(supervised_loss_sum(logits, labels, label_smoothing=0.1), expected)


def test_evaluation_sums_do_not_depend_on_batches():
    logits, labels = batch(rows=12)
    whole = EvaluationSums("cpu")
    whole.add(logits, labels)
    parts = EvaluationSums("cpu")
    for start, end in ((0, 1), (1, 8), (8, 12)):
        parts.add(logits[start:end], labels[start:end])
    assert parts.result().loss == pytest.approx(whole.result().loss, abs=1e-9)
    assert parts.result().token_accuracy == whole.result().token_accuracy


def test_evaluation_sums_count_tokens_and_sequences():
    labels = torch.tensor([[1, 2, -100], [3, 0, 1], [-100, -100, -100]])
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 2, 0], [3, 0, 2], [0, 0, 0]]), 4).float() * 50
    sums = EvaluationSums("cpu")
    sums.add(logits, labels)
    result = sums.result()
    assert result.token_accuracy == 4 / 5
    assert result.sequence_accuracy == 1 / 2  # the third row has no supervised token and does not count
    assert sums.num_sequences == 2
    assert result.loss == pytest.approx(50 / 5, abs=1e-4)
    assert result.perplexity == pytest.approx(math.exp(result.loss))


def test_answer_prompt_stops_at_the_end_token_and_keeps_the_mode():
    tokenizer, model = build_tokenizer(), build_model("llama")
    model.train()
    whole = answer_prompt(model, tokenizer, "Two plus", max_new_tokens=8, eos_token_ids=[2], add_special_tokens=False)
    assert model.training
    ids = tokenizer("Two plus", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        first = int(model.eval()(ids).logits[0, -1].argmax())
    assert whole.startswith(tokenizer.decode([first]))
    stopped = answer_prompt(
        model, tokenizer, "Two plus", max_new_tokens=8, eos_token_ids=[first], add_special_tokens=False
    )
    assert stopped == ""
