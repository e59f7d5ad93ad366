"""Packed rows of every architecture: the numbers of a plain padded step, and no document in another.

A few architectures, one for each way of keeping documents apart, are tried in the default suite, all of them in the
slow one. `docs/architectures.md` is made from the same models.
"""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from sft.batching.layout import model_inputs
from sft.configuration.schema import LoRAConfig
from sft.modeling.compiling import compile_layers
from sft.modeling.document_attention import isolated_documents
from sft.modeling.gradient_checkpointing import gradient_checkpointing_enabled
from sft.modeling.text_adapters import add_text_adapters
from tests.support.architectures import ARCHITECTURES, build_architecture, loss_and_gradients_of_rows_alone
from tests.support.layouts import (
    LENGTHS,
    assert_same,
    gradients,
    layout_of,
    loss_and_gradients,
    padded_loss_and_gradients,
    random_rows,
)
from tests.support.small_models import with_random_adapters

QUICK = ("mistral", "phimoe", "gemma2", "gpt_oss", "llama4", "deepseek_v3", "lfm2", "mamba2", "qwen3_next")
"""Each of them has something that no other of them has."""
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
A_FEW = [name if name in ("gpt_oss", "lfm2") else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


def expected_of(name, model, rows):
    """LongRoPE goes by the longest row of a padded batch; here each row has its own."""
    by_length = "length of the row" in ARCHITECTURES[name].feature
    return (loss_and_gradients_of_rows_alone if by_length else padded_loss_and_gradients)(model, rows)


@pytest.mark.parametrize("name", EVERY)
def test_packed_rows_have_the_loss_and_gradients_of_a_padded_step(name):
    model = build_architecture(name)
    found = loss_and_gradients(model, random_rows())
    assert found[2].is_padding_free, found[2].obstacle
    assert_same(found, expected_of(name, model, random_rows()))


@pytest.mark.parametrize("name", EVERY)
def test_a_changed_document_changes_no_bit_of_another(name):
    """In the logits, and in the gradients of each document's embeddings."""
    model = build_architecture(name)
    layout = layout_of(model)
    before, after = random_rows(), random_rows()
    after[3] = {**after[3], "input_ids": (after[3]["input_ids"] + 1) % 400}
    with isolated_documents(model, layout.attention):
        outputs = [logits_and_embedding_gradient(model, layout.collator(rows)) for rows in (before, after)]
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        for first, second in zip(*outputs, strict=True):
            assert torch.equal(first[start:end], second[start:end]) == (number != 3)


def logits_and_embedding_gradient(model, batch):
    embedded = []

    def keep(_, __, output):
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()

    with model.get_input_embeddings().register_forward_hook(keep):
        logits = model(**model_inputs(batch)).logits[0]
    weights = torch.linspace(-1, 1, logits.shape[1])
    (gradient,) = torch.autograd.grad((logits * weights).sum(), embedded[0])
    return logits.detach(), gradient[0]


@pytest.mark.parametrize("name", A_FEW)
def test_adapters_under_gradient_checkpointing_have_the_gradients_of_a_padded_step(name):
    torch.manual_seed(1)
    model = add_text_adapters(build_architecture(name), LoRAConfig(r=4, target_modules=["all-linear"]))
    with_random_adapters(model)
    for module in model.modules():  # layers recompute in training only, where the routers of Phi draw at random
        module.training = hasattr(module, "gradient_checkpointing")
    expected = expected_of(name, model, random_rows())
    packed = copy.deepcopy(model)
    layout = layout_of(packed)
    batch = layout.collator(random_rows())
    with gradient_checkpointing_enabled(packed, {"use_reentrant": False}), isolated_documents(packed, layout.attention):
        loss = layout.output.loss_sum(packed, model_inputs(batch), batch) / batch["counts"]["supervised"]
        loss.backward()
    assert layout.is_padding_free, layout.obstacle
    assert_same((loss.detach(), gradients(packed)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2", "gpt_oss", "llama4", "qwen3_5"])
def test_compiled_layers_have_the_gradients_of_a_padded_step(name):
    model = build_architecture(name)
    expected = padded_loss_and_gradients(model, random_rows())
    layout = layout_of(model, torch_compile=True, packing=True).with_micro_batch_size(2)
    compile_layers(model, has_fixed_shape=layout.has_fixed_shape, backend="aot_eager")
    batch = layout.collator(random_rows())
    with isolated_documents(model, layout.attention):
        loss = layout.output.loss_sum(model, model_inputs(batch), batch) / batch["counts"]["supervised"]
        loss.backward()
    assert_same((loss.detach(), gradients(model)), expected)
