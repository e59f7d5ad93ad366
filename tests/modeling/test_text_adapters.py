"""Adapters are put on what text passes through; what gets none is reported, and impossible ones are refused."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as t

from sft.common.errors import ConfigError, ModelError
from sft.configuration.schema import LoRAConfig
from sft.modeling.text_adapters import add_text_adapters
from sft.modeling.text_path import freeze_unused_modules, try_text_path
from tests.support import messages
from tests.support.small_models import build_model

SIZE = {
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SMALL = {**SIZE, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {**SMALL, "num_experts_per_tok": 2}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**VISION, "image_size": 28, "patch_size": 14}
BUILDERS = {
    "gemma3": lambda: t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(text_config={**SMALL, "head_dim": 8}, vision_config=IMAGE, mm_tokens_per_image=4)
    ),
    "fuyu": lambda: t.FuyuForCausalLM(
        t.FuyuConfig(text_config=t.PersimmonConfig(**SIZE).to_dict(), patch_size=4, **SIZE)
    ),
    "git": lambda: t.GitForCausalLM(t.GitConfig(vision_config=IMAGE, **SIZE)),
    "gpt-oss": lambda: t.GptOssForCausalLM(t.GptOssConfig(**EXPERTS, head_dim=8, num_local_experts=4)),
    "granite": lambda: t.GraniteMoeForCausalLM(t.GraniteMoeConfig(**EXPERTS, num_local_experts=4)),
    "llama4": lambda: t.Llama4ForCausalLM(
        t.Llama4TextConfig(**EXPERTS, intermediate_size_mlp=48, head_dim=8, num_local_experts=4)
    ),
    "phimoe": lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**EXPERTS, num_local_experts=4)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**EXPERTS, num_local_experts=4)),
    "qwen3": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**EXPERTS, head_dim=8, num_experts=4, moe_intermediate_size=16)
    ),
    "deepseek": lambda: t.DeepseekV3ForCausalLM(
        t.DeepseekV3Config(
            **{**EXPERTS, "num_key_value_heads": 4},
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            first_k_dense_replace=1,
        )
    ),
    "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2)),
    "llama": lambda: build_model("llama"),
}


def build(name):
    torch.manual_seed(0)
    return BUILDERS[name]()


def adapted(model):
    return {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("name", "unused", "targets"),
    [
        ("gemma3", ["model.vision_tower", "model.multi_modal_projector"], "all-linear"),
        ("gemma3", ["model.vision_tower", "model.multi_modal_projector"], "q_proj"),
        ("fuyu", ["model.vision_embed_tokens"], "all-linear"),
        ("git", ["git.image_encoder", "git.visual_projection"], "all-linear"),
        ("mixtral", [], "all-linear"),
        ("mamba", [], "x_proj"),
        ("llama", [], "all-linear"),
    ],
)
def test_modules_that_text_does_not_reach_get_no_adapters(name, unused, targets, caplog):
    caplog.set_level("INFO", "sft")
    model = build(name).train()
    assert list(try_text_path(model).unused) == unused
    assert model.training
    model = add_text_adapters(model, LoRAConfig(r=2, target_modules=[targets]))
    assert adapted(model)
    assert not any(part in each for part in unused for each in adapted(model))
    assert (f"{messages.TEXT_DOES_NOT_REACH} {', '.join(unused)} (" in caplog.text) == bool(unused)
    logits = model(input_ids=torch.arange(3, 12)[None], use_cache=False).logits
    logits.square().mean().backward()
    assert all(p.grad is not None for key, p in model.named_parameters() if p.requires_grad), "an adapter without use"


def test_a_target_that_is_only_where_text_does_not_reach_is_refused():
    model = build("gemma3")
    with pytest.raises(
        ModelError, match=messages.pattern(messages.MATCH_NOTHING, key="target_modules", names="fc1")
    ) as caught:
        add_text_adapters(model, LoRAConfig(target_modules=["q_proj", "fc1"]))
    assert "fc2" not in str(caught.value)


def test_adapters_of_a_resumed_checkpoint_stay_where_they_are(tmp_path):
    every = len(adapted(add_text_adapters(build("gemma3"), LoRAConfig(r=2), resumed=tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": "all-linear"}))
    assert len(adapted(add_text_adapters(build("gemma3"), LoRAConfig(r=2), resumed=tmp_path))) > every
    model = add_text_adapters(build("gemma3"), LoRAConfig(r=2))
    model.save_pretrained(tmp_path)
    assert adapted(add_text_adapters(build("gemma3"), LoRAConfig(r=2), resumed=tmp_path)) == adapted(model)


def test_an_expert_that_no_token_was_routed_to_is_reached():
    class Routed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))
            self.unused_head = torch.nn.Linear(32, 32)

        def forward(self, hidden):
            return self.experts[1](hidden)

    model = build("llama")
    model.model.layers[1].mlp = Routed()
    model.config.num_local_experts = 4
    assert list(try_text_path(model).unused) == ["model.layers.1.mlp.unused_head"]


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        *((name, "all-linear") for name in ("gpt-oss", "granite", "llama4", "phimoe", "mixtral", "qwen3", "deepseek")),
        ("gpt-oss", "o_proj"),
        ("mixtral", "o_proj"),
    ],
)
def test_experts_are_reported_with_their_share(name, targets, caplog):
    caplog.set_level("INFO", "sft")
    model = build(name)
    stacked = sum(p.numel() for p in model.parameters() if p.dim() == 3)
    share = f"Experts: {100 * stacked / sum(p.numel() for p in model.parameters()):.1f}% of the parameters, "
    model = add_text_adapters(model, LoRAConfig(r=2, target_modules=[targets]))
    has_adapters = targets == "all-linear"
    assert any(".experts" in each for each in adapted(model)) == has_adapters
    assert not any(part in each for part in (".router", ".gate.") for each in adapted(model)), "a router was adapted"
    assert (share + ("with adapters (" if has_adapters else "frozen without adapters (")) in caplog.text
    model(input_ids=torch.arange(3, 12)[None]).logits.square().mean().backward()


def test_experts_in_a_list_are_reported(caplog):
    caplog.set_level("INFO", "sft")
    model = build("llama")
    model.config.num_local_experts = 3
    mlp = model.model.layers[1].mlp
    mlp.experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    mlp.register_forward_hook(lambda module, _, output: module.experts[0](output))
    add_text_adapters(model, LoRAConfig(r=2, target_modules=["q_proj"]))
    assert messages.FROZEN_EXPERTS.format(names="model.layers.*.mlp.experts.*") in caplog.text


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("deepseek", None),
        ("llama4", "model.layers.*.feed_forward.router"),
        ("llama", None),
    ],
)
def test_linear_layers_that_all_linear_leaves_out_are_reported(name, layers, caplog):
    caplog.set_level("INFO", "sft")
    add_text_adapters(build(name), LoRAConfig(r=2))
    found = [line for line in caplog.messages if line.startswith(messages.FROZEN_LAYERS)]
    assert len(found) == (layers is not None)
    assert (layers or "") in "".join(found)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        (
            "mixtral",
            {"lora_dropout": 0.05},
            r"lora_dropout: 0.05 is not possible .* Write lora_dropout: 0.0, or target_parameters: \[\] ",
        ),
        (
            "qwen3",
            {"target_modules": ["gate_proj"]},
            r"target_modules \[gate_proj\] match nothing .* for target_parameters: model.*gate_up_proj",
        ),
        ("gpt-oss", {"target_parameters": ["experts.w1"]}, r"target_parameters \[experts.w1\] match no parameter"),
        ("qwen3", {"use_dora": True}, "use_dora: true is not possible .* Write use_dora: false,"),
        ("deepseek", {"lora_dropout": 0.5}, "lora_dropout: 0.5 is not possible"),
        (
            "mamba",
            {"target_modules": ["out_proj"]},
            "target_modules: .*'out_proj' is incompatible .* dt_proj, in_proj, ",
        ),
        ("llama", {"target_modules": ["mlp"]}, "target_modules: Target module LlamaMLP.* linear layers: down_proj"),
        ("llama", {"target_modules": ["norm"]}, "target_modules: Target module LlamaRMSNorm"),
    ],
)
def test_adapters_that_peft_cannot_add_are_one_line(name, settings, key):
    with pytest.raises((ConfigError, ModelError), match=rf"^lora_config\.{key}") as caught:
        add_text_adapters(build(name), LoRAConfig(r=4, **settings))
    assert len(str(caught.value).splitlines()) == 1


def test_all_linear_leaves_out_what_peft_refuses(caplog):
    """Fused kernels of state spaces read the weight of the last layer without calling it."""
    caplog.set_level("INFO", "sft")
    found = adapted(add_text_adapters(build("mamba"), LoRAConfig(r=2)))
    assert {name.rpartition(".")[2] for name in found} == {"in_proj", "x_proj", "dt_proj"}
    assert caplog.text.count(messages.PEFT_REFUSES.format(layers="backbone.layers.*.mixer.out_proj")) == 1


@pytest.mark.parametrize(("name", "is_reported"), [("gemma3", True), ("llama", False), ("gpt-oss", False)])
def test_training_all_weights_reports_what_text_does_not_reach(name, is_reported, caplog):
    caplog.set_level("INFO", "sft")
    freeze_unused_modules(build(name))
    assert (messages.TEXT_DOES_NOT_REACH in caplog.text) == is_reported


def test_a_model_that_cannot_be_tried_gets_adapters_everywhere_with_a_line(caplog):
    caplog.set_level("INFO", "sft")
    model = build("llama")

    def forward(input_ids, **others):
        raise KeyError("pixel_values")

    model.forward = forward
    assert len(adapted(add_text_adapters(model, LoRAConfig(r=2)))) == 14
    assert messages.TEXT_NOT_TRIED.format(error="'pixel_values'") in caplog.text
