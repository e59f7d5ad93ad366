"""Weights in the loss: a row of weight 2 is that row given twice, however rows are laid out and computed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sft.batching.layout import model_inputs
from sft.batching.prefixes import find_owners
from sft.modeling.document_attention import isolated_documents
from sft.modeling.evaluation_sums import EvaluationSums
from sft.modeling.supervised_loss import Weighting, cross_entropy_sum, linear_cross_entropy_sum
from tests.support.layouts import gradients, layout_of, random_rows
from tests.support.small_models import build_model

WEIGHTS = torch.tensor([2.0, 0.5, 1.0, 3.0, 0.25, 1.0, 7.0])
IS_ANSWER = torch.tensor([True, True, False, True, False, True, True])


def weighted(row, weight, prompt=0.0):
    """A row with a weight of its supervised tokens, and of the others."""
    is_answer = row["labels"] != -100
    return {**row, "weights": np.where(is_answer, weight, prompt).astype(np.float32)}


def with_prefix(rows, length=12):
    """The rows behind the same leading tokens, which are not supervised."""
    prefix, ignored = np.arange(50, 50 + length), np.full(length, -100)
    return [
        {"input_ids": np.concatenate([prefix, r["input_ids"]]), "labels": np.concatenate([ignored, r["labels"]])}
        for r in rows
    ]


def mean_and_gradients(model, micro_batches, **settings):
    """The loss over all micro-batches, the plain loss, and the gradients."""
    model = copy.deepcopy(model)
    layout, plain = layout_of(model, **settings), []
    batches = [layout.collator(rows) for rows in micro_batches]
    weight = sum(batch["counts"]["weight"] for batch in batches)
    loss = 0.0
    for batch in batches:
        with isolated_documents(model, layout.attention):
            total = layout.output.loss_sum(model, model_inputs(batch), batch, add_plain_loss=plain.append) / weight
            total.backward()
        loss += total.item()
        if "target_weights" not in batch:
            plain.append(total.detach() * weight)
    supervised = sum(batch["counts"]["supervised"] for batch in batches)
    return loss, sum(each.item() for each in plain) / supervised, gradients(model), layout


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    largest = max(gradient.abs().max().item() for gradient in expected[2].values())
    for name, gradient in expected[2].items():
        assert (found[2][name] - gradient).abs().max().item() <= 1e-6 * largest, name


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"padding_free": False}),
        ("llama", {"padding_free": "auto", "share_prefixes": False}),
        ("llama", {"padding_free": "auto"}),
        ("llama", {"padding_free": "auto", "gradient_checkpointing": True}),
        ("gemma2", {"padding_free": "auto"}),  # caps its logits, so that they are the model's own
    ],
    ids=str,
)
def test_a_row_of_weight_two_is_the_row_given_twice(architecture, settings):
    model = build_model(architecture).train()
    one, two, three, four = with_prefix(random_rows(lengths=(7, 19, 33, 12)))
    found = mean_and_gradients(model, [[weighted(one, 2), two, weighted(three, 1), weighted(four, 3)]], **settings)
    copies = [one, one, two, three, four, four, four]
    assert_equal(found, mean_and_gradients(model, [copies], **settings))
    assert_equal(mean_and_gradients(model, [[weighted(one, 2)], [two, three], [weighted(four, 3)]], **settings), found)
    assert found[1] == pytest.approx(mean_and_gradients(model, [[one, two, three, four]], **settings)[0], rel=1e-6)
    assert found[3].output._layer is None or architecture == "llama"


def test_prompt_tokens_are_trained_with_their_weight_and_are_not_shared():
    model = build_model("llama").train()
    rows = with_prefix(random_rows(lengths=(7, 19)))
    found = mean_and_gradients(model, [[weighted(row, 1, 0.5) for row in rows]])
    everything = [{**row, "labels": row["input_ids"]} for row in rows]
    # Half of the sum over all tokens, and half of that over the answers.
    supervised = [sum((row["labels"][1:] != -100).sum() for row in kind) for kind in (everything, rows)]
    (all_loss, _, of_all, _), (answer_loss, _, of_answers, _) = (
        mean_and_gradients(model, [kind]) for kind in (everything, rows)
    )
    weight = sum(supervised) / 2
    shares = [count / 2 / weight for count in supervised]
    expected = {name: shares[0] * of_all[name] + shares[1] * of_answers[name] for name in of_all}
    assert_equal(found, (shares[0] * all_loss + shares[1] * answer_loss, None, expected))
    assert found[1] == pytest.approx(answer_loss, rel=1e-6)
    assert find_owners([weighted(row, 1, 0.5) for row in rows])[1] == [0, 0]
    assert find_owners([weighted(row, 3) for row in rows])[1] == find_owners(rows)[1] != [0, 0]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_rows", [2, 64])
def test_weighted_sums_equal_torchs_own(chunk_rows, label_smoothing):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, requires_grad=True)
    layer = torch.randn(11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (7,), generator=generator)
    plain, hits = [], []
    how = {"label_smoothing": label_smoothing, "count_hits": hits.append}
    weighting = Weighting(weights=WEIGHTS, is_answer=IS_ANSWER, add_plain_loss=plain.append)
    total = linear_cross_entropy_sum(hidden, layer, None, targets, weighting=weighting, chunk_rows=chunk_rows, **how)
    found = torch.autograd.grad(total, (hidden, layer))
    logits = hidden @ layer.t()
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(total, (losses * WEIGHTS).sum())
    torch.testing.assert_close(found, torch.autograd.grad((losses * WEIGHTS).sum(), (hidden, layer), retain_graph=True))
    torch.testing.assert_close(sum(plain), (losses * IS_ANSWER).sum())
    assert sum(hits) == ((logits.argmax(1) == targets) & IS_ANSWER).sum()
    own = logits.detach().requires_grad_()
    given = cross_entropy_sum(own, targets, weighting=weighting, **how)
    given.backward()
    torch.testing.assert_close(given, (losses * WEIGHTS).sum())
    torch.testing.assert_close(own.grad, torch.autograd.grad((losses * WEIGHTS).sum(), logits)[0])


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e4])
def test_weights_of_any_size_leave_float16_gradients_finite_and_exact(factor):
    hidden = torch.randn(7, 4, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    layer = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(7)

    def gradient(kind):
        leaf = layer.to(kind).requires_grad_()
        weighting = Weighting(weights=WEIGHTS * factor)
        (linear_cross_entropy_sum(hidden.to(kind), leaf, None, targets, weighting=weighting) / factor).backward()
        return leaf.grad.float()

    torch.testing.assert_close(gradient(torch.float16), gradient(torch.float32), rtol=1e-2, atol=1e-2)


def test_evaluation_has_both_losses_and_counts_answers_alone():
    losses = torch.tensor([1.0, 2.0, 8.0, 4.0, 16.0])
    hits = torch.tensor([True, True, False, False, True])
    batch = {
        "target_rows": torch.tensor([0, 0, 0, 1, 1]),
        "target_weights": torch.tensor([2.0, 2.0, 0.5, 1.0, 0.5]),
        "is_answer": torch.tensor([True, True, False, True, False]),
        "counts": {"rows": 2, "supervised": 3, "weight": 6.0, "weighted_rows": 2},
    }
    sums = EvaluationSums("cpu")
    sums.add(losses, hits, batch)
    result = sums.result()
    assert result.loss == (2 + 4 + 4 + 4 + 8) / 6
    assert result.loss_unweighted == (1 + 2 + 4) / 3
    assert result.perplexity == pytest.approx(np.exp(7 / 3))
    assert (result.token_accuracy, result.sequence_accuracy) == (2 / 3, 1 / 2)
