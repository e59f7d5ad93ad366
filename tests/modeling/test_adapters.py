"""Adapters: the layers that get one, and names that match nothing."""

from __future__ import annotations

import pytest

from sft.common.errors import ModelError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import LoRAConfig, ModelConfig
from sft.modeling.loading import load_pretrained_model
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
