"""Padded rows are computed without a mask for the padding, and without reading a value back from the device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from sft.batching.layout import model_inputs
from sft.modeling.document_attention import attention_of, isolated_documents
from sft.modeling.padded_attention import NAME as PADDED
from tests.support.layouts import assert_same, layout_of, loss_and_gradients, padded_loss_and_gradients, random_rows
from tests.support.small_models import SIZES, VOCABULARY, build_model


def build(name):
    """A model of an architecture, or one whose attention is limited."""
    torch.manual_seed(0)
    kinds = {
        "window": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=8)),
        "layers with a window": lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(
                **SIZES, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        "chunks": lambda: transformers.Llama4ForCausalLM(
            transformers.Llama4TextConfig(**SIZES, head_dim=8, num_local_experts=2, attention_chunk_size=8)
        ),
        "experts": lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**SIZES, num_experts_per_tok=2, num_local_experts=4)
        ),
        "positions of the mask": lambda: transformers.BloomForCausalLM(
            transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
        ),
    }
    return (kinds[name]() if name in kinds else build_model(name)).eval()


class NoReads(TorchDispatchMode):
    """Refuses to read a tensor's value, for which a GPU would have to be synchronized."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a tensor was read"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", PADDED),
        ("qwen2", PADDED),
        ("phi3", PADDED),
        ("gpt2", PADDED),
        ("window", PADDED),
        ("layers with a window", PADDED),
        ("chunks", PADDED),
        ("experts", PADDED),
        ("positions of the mask", None),
    ],
)
def test_padded_rows_equal_those_with_a_mask(name, attention):
    model, rows = build(name), random_rows(lengths=(7, 19, 4))
    expected = padded_loss_and_gradients(model, rows)
    *found, layout = loss_and_gradients(model, rows, padding_free=False)
    assert layout.attention == attention
    assert layout.findings.skips_padding_mask == (attention is not None)
    assert_same(found, expected)
    assert attention_of(model) == layout.findings.attention  # its own again


@pytest.mark.parametrize("name", ["llama", "gpt2", "window", "layers with a window"])
@pytest.mark.parametrize("lengths", [(7, 19, 4), (9, 9), (5,)])
def test_no_value_is_read_in_a_step_of_padded_rows(name, lengths):
    model = build(name)
    layout = layout_of(model, padding_free=False)
    batch = layout.collator(random_rows(lengths=lengths))
    with isolated_documents(model, layout.attention), NoReads():
        layout.output.loss_sum(model, model_inputs(batch), batch).backward()
    if name == "llama":  # with a window, transformers does not look for padding
        with pytest.raises(AssertionError, match="a tensor was read"), NoReads():
            layout.output.loss_sum(model, model_inputs(batch), batch)


def test_another_attention_stays():
    model = build_model("llama")
    model.set_attn_implementation("eager")
    layout = layout_of(model, padding_free=False)
    assert layout.attention is None
    assert not layout.findings.skips_padding_mask


@pytest.mark.parametrize(("kept", "attention"), [(True, PADDED), (False, None), (None, None)])
def test_a_resumed_run_keeps_its_mask(kept, attention):
    model = build_model("llama")
    findings = replace(layout_of(model, padding_free=False).findings, skips_padding_mask=kept)
    layout = layout_of(model, padding_free=False, kept=findings)
    assert layout.attention == attention
