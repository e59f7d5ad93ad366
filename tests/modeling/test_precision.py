"""The number types of a run: what `auto` resolves to, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling import precision as precision_module
from sft.modeling.precision import resolve_precision

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


@pytest.mark.parametrize(("is_faster", "mixed"), [(False, "no"), (True, "bf16")])
def test_resolve_precision_on_cpu_keeps_weights_in_float32(monkeypatch, is_faster, mixed):
    monkeypatch.setattr(precision_module, "is_bfloat16_faster_on_cpu", lambda: is_faster)
    model = ModelConfig(model_name_or_path="m")
    expected = Precision(weights="float32", mixed=mixed)
    assert resolve_precision(model, TrainingConfig(), CPU, adapters_only=True) == expected
    with pytest.raises(ConfigError, match="fp16: true needs a GPU"):
        resolve_precision(model, TrainingConfig(fp16=True), CPU, adapters_only=False)


@pytest.mark.parametrize(("float32", "bfloat16", "faster"), [(1.0, 0.5, True), (1.0, 0.8, False), (1.0, 2.0, False)])
def test_bfloat16_on_cpu_needs_to_be_clearly_faster(monkeypatch, float32, bfloat16, faster):
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision_module, "_best_seconds", seconds.get)
    assert precision_module.is_bfloat16_faster_on_cpu() is faster


def test_best_seconds_measures_both_types():
    assert all(precision_module._best_seconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))
