"""The precision of a run: kept on resume, refused where a setting or the device contradicts it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sft.checkpointing.resume_point import ResumePoint
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import LoRAConfig, TrainingConfig
from sft.modeling.precision import ON_CPU
from sft.training.decided_precision import decide_precision
from tests.support import messages
from tests.support.setups import config_of

CPU, GPU = DistributedContext(), DistributedContext(device="cuda:0")
AUTO = {"weights": "float32", "mixed": "no"}


def checkpoint(precision):
    """Its manifest as this version or an earlier one wrote it."""
    manifest = {} if precision is None else {"precision": precision}
    return ResumePoint(path=Path("out/checkpoint-4"), step=4, manifest=manifest)


def decide(precision, *, device=CPU, dtype="auto", lora=False, **settings):
    config = config_of(TrainingConfig(**settings))
    config = replace(config, model=replace(config.model, dtype=dtype), lora=LoRAConfig() if lora else None)
    return decide_precision(config, device, checkpoint(precision))


@pytest.fixture
def gpu(monkeypatch):
    def have(*, bfloat16):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
        return GPU

    return have


def test_a_new_run_decides_by_settings_and_device():
    assert decide_precision(config_of(TrainingConfig()), CPU, None).reason == ON_CPU


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("mixed", ["no", "bf16"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "float16"])
def test_auto_keeps_what_the_checkpoint_recorded(weights, mixed, lora):
    kept = decide({"weights": weights, "mixed": mixed, "reason": "another"}, lora=lora)
    assert (kept.weights, kept.mixed) == (weights, mixed)
    assert kept.reason == (ON_CPU if (weights, mixed) == ("float32", "no") else "as in checkpoint-4")


@pytest.mark.parametrize("mixed", ["no", "bf16", "fp16"])
def test_auto_keeps_it_on_a_gpu_too(gpu, mixed):
    assert decide({"weights": "float32", "mixed": mixed}, device=gpu(bfloat16=True)).mixed == mixed


@pytest.mark.parametrize(
    ("mixed", "settings"),
    [
        ("bf16", {"bf16": True}),
        ("bf16", {"bf16": True, "fp16": False}),
        ("bf16", {"fp16": False}),
        ("bf16", {"bf16": True, "dtype": "float32"}),
        ("no", {"bf16": False}),
        ("no", {"bf16": False, "fp16": False, "dtype": "float32"}),
    ],
)
def test_a_setting_that_agrees_is_no_change(mixed, settings):
    assert decide({"weights": "float32", "mixed": mixed}, **settings).mixed == mixed


@pytest.mark.parametrize(
    ("precision", "settings", "key"),
    [
        (("float32", "bf16"), {"bf16": False}, "bf16"),
        (("float32", "no"), {"bf16": True}, "bf16"),
        (("float32", "fp16"), {"bf16": True}, "bf16"),
        (("float32", "bf16"), {"dtype": "bfloat16"}, "dtype"),
        (("bfloat16", "bf16"), {"dtype": "float32"}, "dtype"),
        (("bfloat16", "no"), {"dtype": "float16"}, "dtype"),
    ],
)
def test_a_setting_that_asks_for_another_precision_is_refused_in_one_line(precision, settings, key):
    weights, mixed = precision
    with pytest.raises(ConfigError) as refused:
        decide({"weights": weights, "mixed": mixed}, **settings)
    (line,) = refused.value.problems
    assert line.startswith(messages.OTHER_SETTING.format(key=key, name="checkpoint-4", before=""))
    assert messages.WRITE_AUTO_PRECISION.format(key=key) in line
    assert "\n" not in line


@pytest.mark.parametrize("settings", [{"fp16": True}, {"fp16": True, "bf16": False}])
def test_float16_instead_of_bfloat16_is_refused(gpu, settings):
    with pytest.raises(ConfigError) as refused:
        decide({"weights": "float32", "mixed": "bf16"}, device=gpu(bfloat16=True), **settings)
    assert [line.partition(":")[0] for line in refused.value.problems] == sorted(settings)


@pytest.mark.parametrize(
    ("mixed", "weights", "bfloat16", "reason"),
    [
        ("fp16", "float32", None, "which needs a GPU, and this run is on cpu"),
        ("bf16", "float32", False, "and this GPU has no bfloat16"),
        ("fp8", "float32", None, "which this version does not know"),
        ("no", "float4", None, "which this version does not know"),
    ],
)
def test_a_precision_that_cannot_be_had_here_is_refused_in_one_line(gpu, mixed, weights, bfloat16, reason):
    device = CPU if bfloat16 is None else gpu(bfloat16=bfloat16)
    with pytest.raises(ConfigError) as refused:
        decide({"weights": weights, "mixed": mixed}, device=device)
    (line,) = refused.value.problems
    assert line.startswith(messages.OTHER_SETTING.format(key="resume_from_checkpoint", name="checkpoint-4", before=""))
    assert reason in line


def test_a_checkpoint_without_the_record_is_one_line(caplog):
    with caplog.at_level("INFO", "sft.train"):
        precision = decide(None)
    assert (precision.weights, precision.mixed) == (AUTO["weights"], AUTO["mixed"])
    assert len(caplog.messages) == 1
    assert messages.PRECISION_NOT_RECORDED.format(name="checkpoint-4") in caplog.text
