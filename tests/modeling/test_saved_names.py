"""Weights that `save_pretrained` writes under published names come back into the model, to the bit."""

from __future__ import annotations

import pytest
import torch

from sft.modeling.saved_names import has_other_names
from sft.modeling.sharded_state import load_full_weights
from tests.support.architectures import build_architecture

RENAMED = {"mixtral": True, "qwen3_moe": True, "nemotron_h": True, "llama": False, "gpt_oss": False, "qwen2": False}


@pytest.mark.parametrize("name", RENAMED)
def test_weights_are_loaded_whatever_they_are_called_in_the_file(tmp_path, name):
    model = build_architecture(name)
    model.save_pretrained(tmp_path)
    expected = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    assert has_other_names(tmp_path, model) == RENAMED[name]
    assert load_full_weights(tmp_path, model) == []
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_a_folder_without_whole_weights_has_no_other_names(tmp_path):
    assert not has_other_names(tmp_path, build_architecture("mixtral"))
