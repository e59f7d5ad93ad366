"""Adapters: the layers that get one, and names that match nothing."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling.adapters import saved_adapter_state
from sft.modeling.loading import load_pretrained_model
from sft.modeling.state_copy import copy_to_memory
from tests.support import messages
from tests.support.small_models import ARCHITECTURES

CPU = DistributedContext()
FLOAT32 = Precision(weights="float32", mixed="no")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_load_model_puts_adapters_on_all_linear_layers_but_the_head(model_folder, architecture):
    config = ModelConfig(model_name_or_path=model_folder(architecture))
    model = load_pretrained_model(config, LoRAConfig(r=4), None, FLOAT32, CPU)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    per_layer = {"gpt2": 4, "phi3": 4}.get(architecture, 7)
    assert len(adapted) == 2 * per_layer
    assert not any("lm_head" in name for name in adapted)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["q_proj"],
            r"match nothing in GPT2LMHeadModel. Its linear layers: c_attn, c_fc, c_proj. Use those",
        ),
        (["c_attn", "q_proj"], r"target_modules \[q_proj\] match nothing"),
    ],
)
def test_load_model_names_the_layers_where_a_target_matches_nothing(model_folder, targets, message):
    config = ModelConfig(model_name_or_path=model_folder("gpt2"))
    with pytest.raises(ModelError, match=message):
        load_pretrained_model(config, LoRAConfig(target_modules=targets), None, FLOAT32, CPU)


def test_load_model_refuses_unknown_modules_to_save(model_folder):
    config = ModelConfig(model_name_or_path=model_folder("llama"))
    with pytest.raises(
        ModelError,
        match=messages.pattern(messages.MATCH_NOTHING, key="modules_to_save", names="wte") + " .* embed_tokens",
    ):
        load_pretrained_model(config, LoRAConfig(modules_to_save=["wte"]), None, FLOAT32, CPU)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        pytest.param("llama", {}, id="plain"),
        pytest.param("llama", {"use_dora": True}, id="dora"),
        pytest.param("llama", {"target_modules": ["q_proj", "embed_tokens"]}, id="embedding"),
        pytest.param("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, id="modules to save"),
        pytest.param("gpt2", {"bias": "all"}, id="biases"),
    ],
)
def test_saved_adapters_are_written_from_a_copy_of_them_alone(model_folder, tmp_path, architecture, settings):
    config = ModelConfig(model_name_or_path=model_folder(architecture))
    model = load_pretrained_model(config, LoRAConfig(**settings), None, FLOAT32, CPU)
    model.save_pretrained(tmp_path / "expected")
    copy = copy_to_memory(saved_adapter_state(model))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(7.0)
    model.save_pretrained(tmp_path / "copied", state_dict=copy)
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert len(frozen & set(copy)) <= 1  # the embedding, where peft saves it beside its adapter
    files = [path.name for path in (tmp_path / "expected").iterdir()]
    assert "adapter_model.safetensors" in files
    for name in files:
        assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
