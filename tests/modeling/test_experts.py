"""Adapters on stacked experts: where they are, that they are saved, merged and read by peft and transformers alone."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sft.common.errors import ConfigError
from sft.configuration.schema import LoRAConfig
from sft.modeling import adapter_targets, frozen_weights
from sft.modeling.experts import linear_routers, stacked_experts
from sft.modeling.merging import merge_adapters
from sft.modeling.text_adapters import add_text_adapters
from tests.support.architectures import build_architecture
from tests.support.small_models import build_model, with_random_adapters

IDS = torch.arange(3, 40)[None]
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def with_adapters(name, **lora):
    torch.manual_seed(0)
    model = add_text_adapters(build_architecture(name), LoRAConfig(r=2, **lora))
    with_random_adapters(model)
    return model


def adapted(model):
    """Names of what has an adapter: of layers, and of parameters beneath the wrappers of their module."""
    return {
        f"{name.removeprefix('base_model.model.').replace('.base_layer', '')}"
        + (f".{module.parameter_name}" if hasattr(module, "parameter_name") else "")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3", "llama4"])
def test_adapters_on_experts_get_gradients_and_are_saved_and_merged(name, tmp_path):
    model = with_adapters(name)
    assert any(each.endswith(EXPERTS) for each in adapted(model))
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(w.grad is not None and w.grad.any() for w in model.parameters() if w.requires_grad)
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        model.save_pretrained(tmp_path / "adapters")
        beside = PeftModel.from_pretrained(build_architecture(name), tmp_path / "adapters").eval()
        torch.testing.assert_close(beside(input_ids=IDS).logits, expected, rtol=0, atol=0)
        assert adapted(beside) == adapted(model)
        merge_adapters(model).save_pretrained(tmp_path / "merged")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_all_linear_means_every_matrix_of_a_layer_but_the_router():
    """DeepSeek's shared experts and dense layers have names that peft takes for those of the experts."""
    model = build_architecture("deepseek_v3")
    matrices = {
        name.removesuffix(".weight")
        for name, weight in model.named_parameters()
        if weight.dim() > 1 and "layers." in name and ".gate." not in name
    }
    found = {name.removesuffix(".weight") for name in adapted(with_adapters("deepseek_v3"))}
    assert found == matrices


def test_the_router_has_adapters_only_where_it_is_named():
    model = with_adapters("mixtral", target_parameters=[*EXPERTS, "gate.weight"])
    assert {name.rpartition("layers.1.")[2] for name in adapted(model) if "layers.1.mlp" in name} == {
        "mlp.experts.gate_up_proj",
        "mlp.experts.down_proj",
        "mlp.gate.weight",
    }
    assert not any(".mlp" in name for name in adapted(with_adapters("mixtral", target_parameters=[])))
    only = adapted(with_adapters("mixtral", target_modules=[], target_parameters=["layers.0.mlp.experts.down_proj"]))
    assert only == {"model.layers.0.mlp.experts.down_proj"}


def test_a_linear_router_gets_none_from_all_linear():
    """Code that comes with a model often has the router as a linear layer, and experts in a list."""
    model = build_model("llama")
    model.config.num_local_experts = 3
    mlp = model.model.layers[1].mlp
    mlp.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    mlp.router = torch.nn.Linear(32, 3)
    mlp.register_forward_hook(
        lambda module, args, output: output * module.router(args[0]).mean() + module.experts[1](args[0])
    )
    assert linear_routers(model) == ["model.layers.1.mlp.router"]
    names = adapted(add_text_adapters(model, LoRAConfig(r=2)))
    assert "model.layers.1.mlp.experts.1" in names
    assert "model.layers.1.mlp.router" not in names


def test_a_resumed_checkpoint_keeps_the_targets_that_it_was_trained_with(tmp_path):
    """Checkpoints of earlier versions have adapters where peft put them."""
    first = with_adapters("qwen3_moe", target_parameters=["experts.down_proj"])
    first.save_pretrained(tmp_path)
    resumed = add_text_adapters(build_architecture("qwen3_moe"), LoRAConfig(r=2), resumed=tmp_path)
    assert adapted(resumed) == adapted(first) != adapted(with_adapters("qwen3_moe"))


def test_a_peft_without_single_parameters_leaves_experts_out_with_a_line(monkeypatch, caplog):
    caplog.set_level("INFO", "sft")
    for module in (adapter_targets, frozen_weights):
        monkeypatch.setattr(module, "takes_parameters", lambda: False)
    model = with_adapters("gpt_oss")
    assert not any(".experts" in name for name in adapted(model))
    assert "frozen without adapters (" in caplog.text
    assert "The installed peft cannot adapt them: pip install -U peft" in caplog.text
    with pytest.raises(ConfigError, match=r"^lora_config\.target_parameters: needs peft"):
        with_adapters("gpt_oss", target_parameters=["experts.down_proj"])


def test_experts_without_adapters_are_reported_with_what_to_write(caplog):
    caplog.set_level("INFO", "sft")
    with_adapters("gpt_oss", target_modules=["q_proj"])
    assert "To train them, write target_parameters: [experts.gate_up_proj, experts.down_proj]" in caplog.text


def test_dense_models_have_no_experts():
    assert not stacked_experts(build_model("llama"))
    assert not linear_routers(build_model("llama"))
