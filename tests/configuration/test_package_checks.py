"""Settings that need an optional package: refused when the configuration is read."""

from __future__ import annotations

import json

import pytest

from sft.configuration.checks import packages
from sft.configuration.checks.packages import optimizer_packages
from sft.configuration.installed_transformers import BFLOAT16_OPTIMIZERS, optimizer_names
from tests.support import messages
from tests.support.configurations import load, problems_of

OF_TORCH = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
"""Optimizers that come with torch and transformers."""
NEEDED = {
    "optim: galore_adamw\noptim_target_modules: [attn]\n": ("galore_torch", "galore-torch"),
    "optim: apollo_adamw\noptim_target_modules: all-linear\n": ("apollo_torch", "apollo-torch"),
    "optim: lomo\n": ("lomo_optim", "lomo-optim"),
    "optim: adalomo\n": ("lomo_optim", "lomo-optim"),
    "optim: grokadamw\n": ("grokadamw", "grokadamw"),
    "optim: schedule_free_adamw\n": ("schedulefree", "schedulefree"),
    "optim: schedule_free_sgd\n": ("schedulefree", "schedulefree"),
    "optim: adamw_torch_4bit\n": ("torchao", "torchao"),
    "optim: adamw_torch_8bit\n": ("torchao", "torchao"),
    "optim: stable_adamw\n": ("optimi", "torch-optimi"),
    "optim: lion_8bit\n": ("bitsandbytes", "bitsandbytes"),
    "optim: paged_adamw_8bit\n": ("bitsandbytes", "bitsandbytes"),
    "optim: adamw_torch_xla\n": ("torch_xla", "torch_xla"),
    "attn_implementation: flash_attention_2\n": ("flash_attn", "flash-attn"),
    "use_liger_kernel: yes\n": ("liger_kernel", "liger-kernel"),
    "ddp_backend: ccl\n": ("oneccl_bindings_for_pytorch", "oneccl_bindings_for_pytorch"),
}


@pytest.mark.parametrize("text", NEEDED)
def test_a_missing_package_is_named_with_the_key_and_its_line(text, monkeypatch):
    module, name = NEEDED[text]
    monkeypatch.setattr(packages, "is_installed", lambda asked: asked not in (module, "kernels"))
    (problem,) = problems_of(text)
    assert problem.startswith(f"my.yaml:3: {text.partition(':')[0]}: ")
    assert messages.MISSING_PACKAGE.format(name=name) in problem
    monkeypatch.setattr(packages, "is_installed", lambda asked: True)
    load(text)


def test_every_optimizer_of_transformers_is_of_torch_or_has_a_package():
    assert {name for name in optimizer_names() if not optimizer_packages(name)} == OF_TORCH | set(BFLOAT16_OPTIMIZERS)


@pytest.mark.parametrize("name", BFLOAT16_OPTIMIZERS)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "optim"),
        ("dtype: bfloat16\nlora_config: {}\n", "optim"),
        ("dtype: bfloat16\noptim_args: eps=1\n", "optim_args"),
        ("dtype: bfloat16\nfsdp: {}\n", "optim"),
    ],
    ids=["float32", "adapters", "options", "sharded"],
)
def test_an_optimizer_of_bfloat16_weights_is_refused_where_it_has_no_effect(name, text, key):
    (problem,) = problems_of(f"optim: {name}\n{text}")
    assert f"{key}: " in problem
    load(f"optim: {name}\ndtype: bfloat16\n")


@pytest.mark.parametrize("name", ["galore_adamw", "galore_adafactor_layerwise", "apollo_adamw"])
def test_an_optimizer_of_some_layers_requires_their_names(name, monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda asked: True)
    (problem,) = problems_of(f"optim: {name}\n")
    assert messages.REQUIRES.format(name=name, key="optim_target_modules") in problem


def test_a_layerwise_optimizer_accumulates_no_gradients(monkeypatch):
    monkeypatch.setattr(packages, "is_installed", lambda asked: True)
    text = "optim: galore_adamw_layerwise\noptim_target_modules: all-linear\ngradient_accumulation_steps: 2\n"
    (problem,) = problems_of(text)
    assert messages.MUST_BE.format(key="gradient_accumulation_steps", value=1) in problem


STAGE_3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("is_file", [True, False])
def test_deepspeed_settings_are_checked_in_a_file_and_in_place(is_file, folder):
    (folder / "zero.json").write_text(json.dumps(STAGE_3))
    problems = problems_of("deepspeed: " + ("zero.json" if is_file else json.dumps(STAGE_3)) + "\n")
    required = "stage3_gather_16bit_weights_on_model_save: true"
    assert any(messages.REQUIRES.format(name="ZeRO stage 3", key=required) in problem for problem in problems)
