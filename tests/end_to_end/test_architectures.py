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


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
)
def test_twenty_steps_on_packs_end_well_and_are_resumed_to_the_bit(run_sft, tmp_path, name):
    model = tmp_path / "model"
    build_architecture(name).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    common = {**PACKED, "model_name_or_path": str(model)}
    whole = run_sft(**common, output_dir=str(tmp_path / "whole"))
    assert whole.status == 0, whole.out + whole.err
    assert messages.PADDING_FREE in whole.out
    assert whole.summary["train"]["steps"] == 20
    assert whole.summary["bad_steps"] == 0
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole" / "checkpoint-10", half / "checkpoint-10")
    resumed = run_sft(**common, output_dir=str(half), resume_from_checkpoint="auto")
    assert resumed.status == 0, resumed.out + resumed.err
    assert messages.AS_IN.format(name="checkpoint-10") in resumed.out
    assert trained(tmp_path / "whole")[10:] == trained(half)
    weights = load_file(half / "model.safetensors")
    assert all(
        torch.equal(weight, weights[key]) for key, weight in load_file(whole.output_dir / "model.safetensors").items()
    )
