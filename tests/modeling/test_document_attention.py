"""Attention within documents: no document affects another, and unsupported features are rejected."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sft.batching.layout import model_inputs
from sft.modeling.document_attention import UnsupportedAttention, attend_within_documents, isolated_documents
from tests.support.layouts import (
    LENGTHS,
    layout_of,
    random_rows,
)
from tests.support.small_models import ARCHITECTURES, build_model


def attend(**changed):
    arguments = {
        "module": torch.nn.Module(),
        "attention_mask": None,
        "cu_seq_lens_q": torch.tensor([0, 3, 5]),
        "max_length_q": 3,
    }
    tensors = [torch.randn(1, heads, 5, 8) for heads in (4, 2, 2)]
    arguments |= changed
    module, mask = arguments.pop("module"), arguments.pop("attention_mask")
    return attend_within_documents(module, *tensors, mask, **arguments)


def test_attend_within_documents_returns_heads_last():
    output, weights = attend()
    assert output.shape == (1, 5, 4, 8)
    assert weights is None


@pytest.mark.parametrize(
    "changed",
    [
        {"cu_seq_lens_q": None},
        {"max_length_q": None},
        {"attention_mask": torch.zeros(1, 1, 5, 5)},
        {"position_bias": torch.zeros(4)},
        {"is_causal": False},
    ],
)
def test_attend_within_documents_rejects_unsupported_arguments(changed):
    with pytest.raises(UnsupportedAttention):
        attend(**changed)


def test_generation_uses_the_models_own_attention():
    """Without boundaries, the document attention would raise an error."""
    model = build_model("llama").eval()
    layout_of(model)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_document_does_not_change_the_others(architecture):
    model = build_model(architecture).eval()
    layout = layout_of(model)
    before, after = random_rows(), random_rows()
    after[2] = {**after[2], "input_ids": (after[2]["input_ids"] + 1) % 400}
    with torch.no_grad(), isolated_documents(model, layout.attention):
        scores = [model(**model_inputs(layout.collator(batch))).logits[0] for batch in (before, after)]
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        assert torch.equal(scores[0][start:end], scores[1][start:end]) == (number != 2)


def test_each_document_alone_gives_the_same_logits():
    model = build_model("llama").eval()
    layout = layout_of(model)
    bounds = np.concatenate([[0], np.cumsum(LENGTHS)])
    with torch.no_grad():
        with isolated_documents(model, layout.attention):
            together = model(**model_inputs(layout.collator(random_rows()))).logits[0]
        for row, start in zip(random_rows(), bounds, strict=False):
            alone = model(input_ids=torch.tensor(row["input_ids"])[None]).logits[0]
            torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_the_models_own_attention_is_restored():
    model = build_model("llama")
    before = model.config._attn_implementation
    with isolated_documents(model, layout_of(model).attention):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_a_saved_configuration_does_not_contain_the_attention(tmp_path):
    model = build_model("llama")
    with isolated_documents(model, layout_of(model).attention):
        model.save_pretrained(tmp_path)
    assert "sft_documents" not in (tmp_path / "config.json").read_text()
