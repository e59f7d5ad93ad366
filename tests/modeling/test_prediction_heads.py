"""Heads for further tokens are found in the files of a model, and stated once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sft.modeling.prediction_heads import left_out_line, prediction_heads
from tests.support import messages
from tests.support.architectures import build_architecture
from tests.support.small_models import build_tokenizer

NAMES = {
    "qwen3_next": ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"],
    "deepseek_v3": ["model.layers.2.eh_proj.weight"],
}


@pytest.fixture(params=NAMES)
def folder(request, tmp_path):
    """A model of 2 layers with heads in its file."""
    model = build_architecture(request.param)
    model.config.num_nextn_predict_layers = 1
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {name: torch.zeros(4, 4) for name in NAMES[request.param]}, file, {"format": "pt"})
    return tmp_path, NAMES[request.param]


def test_heads_are_found_by_their_names_in_the_files(folder):
    path, names = folder
    config = AutoConfig.from_pretrained(path)
    assert prediction_heads(str(path), config) == names
    assert messages.HEADS_ARE_LEFT_OUT in left_out_line("m", names)
    config.num_nextn_predict_layers = 0  # further layers in a file may as well be a mistake in config.json
    assert prediction_heads(str(path), config) == [name for name in names if name.startswith("mtp")]


@pytest.mark.parametrize("name", ["llama", "deepseek_v3", "gemma3n"])
def test_a_model_without_heads_has_none(tmp_path, name):
    model = build_architecture(name)
    model.save_pretrained(tmp_path)
    assert prediction_heads(str(tmp_path), model.config) == []
    assert left_out_line("m", []) is None


def test_a_run_states_them_once(folder, run_sft):
    path, names = folder
    run = run_sft("--dry_run", model_name_or_path=str(path))
    assert run.status == 0, run.err
    assert run.out.count(messages.HEADS_ARE_LEFT_OUT) == 1
    assert run.out.count(names[0]) == 1
