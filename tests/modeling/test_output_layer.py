"""The loss at the output layer: logits of supervised positions only, where they are the product of one layer."""

from __future__ import annotations

import torch
import transformers

from sft.batching.layout import FlatCollator, model_inputs
from sft.modeling.document_attention import isolated_documents
from sft.modeling.output_layer import OutputLayer
from tests.support.layouts import (
    assert_same,
    layout_of,
    loss_and_gradients,
    padded_loss_and_gradients,
    random_rows,
)
from tests.support.small_models import SIZES, build_model


def test_logits_are_computed_for_supervised_positions_only():
    """The layer itself receives no positions, and no tensor as large as all logits is kept."""
    model = build_model("llama").train()
    layout = layout_of(model)
    batch = layout.collator(random_rows())
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
        isolated_documents(model, layout.attention),
    ):
        layout.output.loss_sum(model, model_inputs(batch), batch)
    handle.remove()
    assert seen == [(1, 0, 400)]
    assert max(kept) < batch["counts"]["supervised"] * 400


def test_scaled_logits_are_not_computed_from_the_output_layer():
    torch.manual_seed(0)
    model = transformers.GraniteForCausalLM(transformers.GraniteConfig(**SIZES, logits_scaling=4.0)).train()
    found = loss_and_gradients(model, random_rows())
    assert found[2].output.chunk_bytes is None
    assert_same(found, padded_loss_and_gradients(model, random_rows()))


def test_a_model_without_logits_to_keep_is_supported():
    """Support is read from the model's signature, not from its name."""
    model = build_model("llama")
    output = OutputLayer(model, None)
    output._keeps_positions = False
    batch = FlatCollator(0)(random_rows())
    layout = layout_of(model)
    with isolated_documents(model, layout.attention):
        arguments = (model, model_inputs(batch), batch)
        torch.testing.assert_close(output.loss_sum(*arguments), layout.output.loss_sum(*arguments))
