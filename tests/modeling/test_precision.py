"""The number types of a run: what `auto` resolves to, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.precision import ON_CPU, resolve_precision
from tests.support import messages

CPU, GPU = DistributedContext(), DistributedContext(device="cuda:0")


@pytest.mark.parametrize(
    ("bf16", "fp16", "has_bf16", "expected"),
    [
        ("auto", "auto", True, ("float32", "bf16")),
        ("auto", "auto", False, ("float32", "fp16")),
        (False, "auto", True, ("float32", "no")),
        (False, True, True, ("float32", "fp16")),
        ("auto", True, True, ("float32", "fp16")),
        (True, "auto", True, ("float32", "bf16")),
        ("auto", False, False, ("float32", "no")),
    ],
)
def test_resolve_precision_on_a_gpu(monkeypatch, bf16, fp16, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    precision = resolve_precision(
        ModelConfig(model_name_or_path="m"), TrainingConfig(bf16=bf16, fp16=fp16), GPU, adapters_only=False
    )
    assert (precision.weights, precision.mixed) == expected


@pytest.mark.parametrize(("has_bf16", "weights"), [(True, "bfloat16"), (False, "float16")])
def test_resolve_precision_keeps_frozen_weights_small_on_a_gpu(monkeypatch, has_bf16, weights):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    model = ModelConfig(model_name_or_path="m")
    assert resolve_precision(model, TrainingConfig(), GPU, adapters_only=True).weights == weights


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("bf16", "mixed", "reason"),
    [("auto", "no", ON_CPU), (True, "bf16", "bf16: true"), (False, "no", "bf16: false")],
)
def test_resolve_precision_on_cpu_depends_on_the_settings_alone(bf16, mixed, reason, world_size):
    context = DistributedContext(world_size=world_size)
    precision = resolve_precision(
        ModelConfig(model_name_or_path="m"), TrainingConfig(bf16=bf16), context, adapters_only=True
    )
    assert precision == Precision(weights="float32", mixed=mixed)
    assert precision.reason == reason


def test_resolve_precision_refuses_float16_on_cpu():
    with pytest.raises(ConfigError, match=messages.NEEDS_GPU.format(key="fp16: true")):
        resolve_precision(ModelConfig(model_name_or_path="m"), TrainingConfig(fp16=True), CPU, adapters_only=False)


@pytest.mark.parametrize(("all_have", "expected"), [(True, ("bfloat16", "bf16")), (False, ("float16", "fp16"))])
def test_resolve_precision_follows_the_gpus_of_all_processes(monkeypatch, all_have, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    precision = resolve_precision(
        ModelConfig(model_name_or_path="m"), TrainingConfig(), GPU, adapters_only=True, all_have_bfloat16=all_have
    )
    assert (precision.weights, precision.mixed) == expected
