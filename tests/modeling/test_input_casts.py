"""LoRA layers under autocast: no detour over float32, and the same numbers to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sft.modeling.compiling import compile_layers
from sft.modeling.input_casts import leave_casts_to_autocast
from tests.support.small_models import build_model

TARGETS = ["q_proj", "v_proj", "gate_proj", "down_proj"]


def adapted(dtype=torch.bfloat16, **settings):
    torch.manual_seed(0)
    model = build_model("llama").to(dtype)
    return get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False, **settings))


def outcome(model, dtype=torch.bfloat16, checkpointing=False):
    """Logits and gradients under autocast, and the types of what the adapters were given."""
    types = set()
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with torch.autocast("cpu", dtype):
        logits = model(input_ids=torch.arange(1, 41)[None], use_cache=False).logits.float()
    logits.square().mean().backward()
    return [logits.detach(), *(each.grad for each in model.parameters() if each.grad is not None)], types


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_numbers_without_the_detour_are_the_same_to_the_bit(weights, checkpointing):
    plain = adapted(weights)
    direct = copy.deepcopy(plain)
    assert leave_casts_to_autocast(direct) == 2 * len(TARGETS)
    (before, types_before), (after, types_after) = (
        outcome(each, checkpointing=checkpointing) for each in (plain, direct)
    )
    assert len(before) == len(after) == 1 + 2 * 2 * len(TARGETS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert types_before == {torch.float32}
    assert torch.bfloat16 in types_after
    assert (types_after == {torch.bfloat16}) == (weights == torch.bfloat16)


def test_outside_autocast_inputs_are_cast():
    """As in generation."""
    plain = adapted()
    direct = copy.deepcopy(plain)
    leave_casts_to_autocast(direct)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, direct(input_ids=ids).logits)


@pytest.mark.parametrize(("settings", "count"), [({"lora_dropout": 0.1}, 0), ({"use_dora": True}, 0), ({}, 8)])
def test_casts_stay_where_they_change_numbers(settings, count):
    assert leave_casts_to_autocast(adapted(**settings)) == count
    assert leave_casts_to_autocast(build_model("llama")) == 0


def test_compiled_layers_take_the_shortcut_without_a_graph_break():
    model = adapted()
    leave_casts_to_autocast(model)
    compile_layers(model, has_fixed_shape=True, backend="eager", fullgraph=True)
    values, types = outcome(model)
    assert types == {torch.bfloat16}
    assert len(values) > 1
