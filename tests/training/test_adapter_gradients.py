"""Adapters that get no gradient in the first step are named, once."""

from __future__ import annotations

import pytest
import torch

from sft.configuration.schema import LoRAConfig
from sft.modeling.adapters import add_adapters
from sft.training.adapter_gradients import AdapterGradients, gradients_of
from tests.support import messages
from tests.support.small_models import build_model
from trainer_utils import train


def test_a_run_whose_adapters_all_get_gradients_logs_nothing(prepare, caplog):
    caplog.set_level("INFO", "sft")
    prepared, _ = prepare(lora=LoRAConfig(r=2), max_steps=1, per_device_train_batch_size=2)
    checks = [each for each in prepared.trainer.callback_handler.callbacks if isinstance(each, AdapterGradients)]
    assert len(checks) == 1
    train(prepared)
    assert checks[0]._is_done
    assert "got no gradient" not in caplog.text


@pytest.mark.parametrize("is_none", [True, False])
def test_a_tensor_without_a_gradient_is_named_once(is_none, caplog):
    caplog.set_level("INFO", "sft")
    model = add_adapters(build_model("llama"), LoRAConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    check = AdapterGradients()
    check.on_pre_optimizer_step(None, None, None, model=model)  # a skipped step
    assert caplog.text == ""
    ids = torch.arange(3, 12)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(gradients_of(model)[1])
    for name, weight in model.named_parameters():
        if "layers.1.self_attn.v_proj.lora" in name:
            weight.grad = None if is_none else torch.zeros_like(weight)
    check.on_pre_optimizer_step(None, None, None, model=model)
    check.on_pre_optimizer_step(None, None, None, model=model)
    expected = messages.NO_GRADIENT.format(count=2, total=8)
    assert caplog.text.count(expected) == 1
    assert "layers.*.self_attn.v_proj.lora_A.default, " in caplog.text
    assert "q_proj" not in caplog.text
