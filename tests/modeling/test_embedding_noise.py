"""NEFTune's noise is scaled by the length of each document, in any layout, in training alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.batching.layout import FlatCollator, PaddedCollator, model_inputs
from sft.modeling.document_attention import NAME, isolated_documents
from sft.modeling.embedding_noise import add_embedding_noise
from tests.support.checkpoints import as_if_killed, trained
from tests.support.layouts import LENGTHS, random_rows
from tests.support.small_models import build_model

ALPHA, SIZE = 5.0, 32


def noise_of(model, batch):
    """The noise on each token of the layout, `[..., d]`."""
    seen = []
    layer = model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with layer, torch.no_grad(), isolated_documents(model, NAME if "cu_seq_lens_q" in batch else None):
        model(**model_inputs(batch))
        return seen[0] - torch.nn.functional.embedding(batch["input_ids"], model.model.embed_tokens.weight)


@pytest.mark.parametrize("collator", [FlatCollator(0), FlatCollator(0, fixed_tokens=128), PaddedCollator(0)])
def test_noise_is_as_large_as_the_document_is_short(collator):
    torch.manual_seed(0)
    model = build_model("llama").train()
    add_embedding_noise(model, ALPHA)
    noise = noise_of(model, collator(random_rows()))
    flat = isinstance(collator, FlatCollator)
    rows = noise[0].split([*LENGTHS, noise.shape[1] - sum(LENGTHS)]) if flat else noise
    for row, length in zip(rows, LENGTHS, strict=False):
        bound = ALPHA / np.sqrt(length * SIZE)
        assert bound * 0.9 < row[:length].abs().max() <= bound * (1 + 1e-5)
        assert row[:length].mean().abs() < bound / 4


def test_there_is_no_noise_outside_of_training():
    model = build_model("llama").eval()
    add_embedding_noise(model, ALPHA)
    assert not noise_of(model, FlatCollator(0)(random_rows())).any()


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_no_alpha_adds_no_hook(alpha):
    model = build_model("llama")
    add_embedding_noise(model, alpha)
    assert not model._forward_pre_hooks


def test_a_run_with_noise_is_resumed_to_the_bit(run_sft, tmp_path):
    common = {"neftune_noise_alpha": 5.0, "packing": True, "max_steps": 4, "save_steps": 2, "learning_rate": 1e-3}
    common |= {"save_total_limit": "null", "sample_prompts": "[]"}
    whole = run_sft(**common, output_dir=str(tmp_path / "whole"))
    quiet = run_sft(**common | {"neftune_noise_alpha": None}, output_dir=str(tmp_path / "quiet"))
    as_if_killed(tmp_path / "whole", tmp_path / "half", 2)
    half = run_sft(**common, output_dir=str(tmp_path / "half"), resume_from_checkpoint="auto")
    assert (whole.status, quiet.status, half.status) == (0, 0, 0)
    assert trained(tmp_path / "half")[-2:] == trained(tmp_path / "whole")[2:]
    assert trained(tmp_path / "quiet") != trained(tmp_path / "whole")
