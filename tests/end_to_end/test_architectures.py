"""Every architecture trained by the command on packs, and resumed to the bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.support import messages
from tests.support.architectures import ARCHITECTURES, build_architecture
from tests.support.checkpoints import trained
from tests.support.small_models import build_tokenizer

PACKED = {
    "packing": True,
    "max_seq_length": 96,
    "per_device_train_batch_size": 1,
    "max_steps": 20,
    "save_steps": 10,
    "save_total_limit": "null",
    "learning_rate": 1e-3,
    "validation_split": 0.2,
}


QUICK = ("mixtral",)
"""Its checkpoints have other names than the model."""


ADAPTERS = {
    "lora_config": {"r": 4, "target_modules": ["all-linear"]},
    "gradient_checkpointing": True,
    "max_steps": 8,
    "save_steps": 4,
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *(pytest.param(name, {}, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in ARCHITECTURES),
        *(pytest.param(name, ADAPTERS, marks=pytest.mark.slow, id=f"{name}, adapters") for name in ARCHITECTURES),
    ],
)
def test_steps_on_packs_end_well_and_are_resumed_to_the_bit(run_sft, tmp_path, name, settings):
    model = tmp_path / "model"
    build_architecture(name).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    common = {**PACKED, "model_name_or_path": str(model), **settings}
    steps, saved = common["max_steps"], common["save_steps"]
    whole = run_sft(**common, output_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.out + whole.err
    assert messages.PADDING_FREE in whole.out
    assert whole.summary["train"]["steps"] == steps
    assert whole.summary["bad_steps"] == 0
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{saved}", half / f"checkpoint-{saved}")
    resumed = run_sft(**common, output_dir=str(half), resume_from_checkpoint="auto")
    assert resumed.status == 0, resumed.out + resumed.err
    assert messages.AS_IN.format(name=f"checkpoint-{saved}") in resumed.out
    assert trained(tmp_path / "whole")[saved:] == trained(half)
    file = "adapter_model.safetensors" if settings else "model.safetensors"
    weights = load_file(half / file)
    assert all(torch.equal(weight, weights[key]) for key, weight in load_file(whole.output_dir / file).items())
