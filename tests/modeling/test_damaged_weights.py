"""Weights that are NaN or inf are found when they are loaded, in one line with the name of the tensor."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig
from sft.modeling.loading import load_pretrained_model
from tests.support.small_models import build_model

NAN, INF = float("nan"), float("inf")


def load(folder, weights="float32"):
    config = ModelConfig(model_name_or_path=str(folder))
    return load_pretrained_model(config, None, None, Precision(weights=weights, mixed="no"), DistributedContext())


@pytest.mark.parametrize(
    ("architecture", "name", "values", "saved", "loaded"),
    [
        ("llama", "model.embed_tokens.weight", [NAN], "float32", "float32"),
        ("llama", "model.norm.weight", [INF], "float32", "float32"),
        ("llama", "lm_head.weight", [INF, -INF], "bfloat16", "float32"),
        ("qwen2", "model.layers.1.self_attn.q_proj.bias", [NAN, NAN], "bfloat16", "bfloat16"),
        ("qwen2", "model.embed_tokens.weight", [NAN], "float16", "float32"),
        ("gpt2", "transformer.wpe.weight", [-INF], "float32", "bfloat16"),
        ("llama", "model.layers.0.mlp.up_proj.weight", [1e6, -1e6, 1e6], "float32", "float16"),
    ],
)
def test_a_value_that_is_no_number_is_refused(tmp_path, architecture, name, values, saved, loaded):
    model = build_model(architecture).to(getattr(torch, saved))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[: len(values)] = torch.tensor(values)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(tmp_path, loaded)
    (line,) = caught.value.problems
    count = "1 value" if len(values) == 1 else f"{len(values)} values"
    assert f"{tmp_path}: {name} contains {count} that are NaN or inf" in line
    assert loaded in line
    assert "\n" not in line


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("value", [0.0, 3e38, -3e38, 1e-45])
def test_any_finite_value_is_accepted(tmp_path, architecture, value):
    model = build_model(architecture)
    with torch.no_grad():
        next(model.parameters()).view(-1)[:100] = value  # the sum of large values is inf
    model.save_pretrained(tmp_path)
    assert load(tmp_path)
