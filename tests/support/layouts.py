"""Loss and gradients of a model: by the layout that is resolved for it, and by a plain padded batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sft.batching.layout import model_inputs
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import isolated_documents
from sft.training.row_layout import resolve_layout

FLOAT32 = Precision(weights="float32", mixed="no")
LENGTHS = (7, 19, 4, 33, 19, 2)


def random_rows(seed=0, lengths=LENGTHS, vocabulary=400):
    """Rows of random tokens. The first third of each, and a few more tokens, are not supervised."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        ids = generator.integers(0, vocabulary, length)
        untrained = (np.arange(length) < length // 3) | (generator.random(length) < 0.2)
        made.append({"input_ids": ids, "labels": np.where(untrained, -100, ids)})
    return made


def padded_loss_and_gradients(model, batch_of_rows):
    """The model's own loss of a padded batch, a mean over the supervised tokens, and its gradients."""
    model = copy.deepcopy(model)
    width = max(len(row["input_ids"]) for row in batch_of_rows)
    ids = torch.zeros(len(batch_of_rows), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, row in enumerate(batch_of_rows):
        length = len(row["input_ids"])
        ids[index, :length] = torch.tensor(row["input_ids"])
        labels[index, :length] = torch.tensor(row["labels"])
        mask[index, :length] = 1
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(model)


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def loss_and_gradients(model, batch_of_rows, **settings):
    """The loss as the trainer computes it, its gradients, and the layout that was chosen."""
    model = copy.deepcopy(model)
    layout = layout_of(model, **settings)
    batch = layout.collator(batch_of_rows)
    with isolated_documents(model, layout.attention):
        total = layout.output.loss_sum(model, model_inputs(batch), batch)
        loss = total / batch["counts"]["supervised"]
        loss.backward()  # inside: checkpointed layers are computed again
    return loss.detach(), gradients(model), layout


def layout_of(model, model_config=None, *, kept=None, **settings):
    return resolve_layout(
        model,
        model_config or ModelConfig(model_name_or_path="m"),
        TrainingConfig(**settings),
        FLOAT32,
        DistributedContext(),
        pad_token_id=0,
        max_seq_length=64,
        kept=kept,
    )


def assert_same(found, expected):
    """Asserts the same loss, to 1e-5, and the same gradients, to 1e-5 of the largest gradient."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max().item() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max().item() <= 1e-5 * largest, name
