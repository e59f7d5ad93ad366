"""Checks of FSDP and DeepSpeed, which shard the training state over processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.common.files import special_file
from sft.common.optional_packages import is_installed, missing_package
from sft.configuration.batch_sizes import AUTO
from sft.configuration.checks.contradiction import Contradiction, current_directory
from sft.configuration.schema import SFTConfig

SHARDABLE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")
"""Optimizers with an elementwise state, which can be sharded like the weights."""
GATHER_ON_SAVE = "stage3_gather_16bit_weights_on_model_save"


def check_fsdp(config: SFTConfig) -> Iterator[Contradiction]:
    """Check what cannot be combined with FSDP."""
    training = config.training
    passed = training.passed_through
    if config.fsdp is None:
        return
    if passed.deepspeed:
        yield Contradiction("deepspeed", "conflicts with fsdp, which also shards the model; choose one.")
    if config.quantization is not None:
        yield Contradiction(
            "fsdp",
            "cannot be combined with quantization_config: quantized weights cannot be sharded. Remove fsdp; each "
            "process then holds all weights, in 4 bits half a byte per parameter.",
        )
    if training.fp16 is True:
        yield Contradiction("fp16", "fsdp supports bfloat16 and float32; set bf16: true, or remove fp16.")
    if training.optim not in SHARDABLE_OPTIMIZERS:
        choices = " | ".join(SHARDABLE_OPTIMIZERS)
        yield Contradiction("optim", f"fsdp cannot shard the state of this optimizer; choose {choices}.")
    if training.torch_compile is True:
        yield Contradiction("torch_compile", "is not supported with fsdp; choose one.")
    yield from _check_auto_sizes(config, "fsdp")
    if passed.save_only_model and config.fsdp.checkpoints == "sharded":
        yield Contradiction(
            "save_only_model",
            "cannot be combined with fsdp.checkpoints: sharded, which only serve to resume training; choose one.",
        )


def check_deepspeed(config: SFTConfig) -> Iterator[Contradiction]:
    """Check `deepspeed`, which is a JSON file or a mapping of DeepSpeed's settings."""
    setting = config.training.passed_through.deepspeed
    if not setting:
        return
    if not is_installed("deepspeed"):
        yield Contradiction("deepspeed", f"{missing_package('deepspeed')}, or use fsdp: {{}} instead.")
    if isinstance(setting, str):
        yield from _check_deepspeed_file(setting)
    else:
        yield from _check_deepspeed_settings(setting, "")
    if config.quantization is not None:
        yield Contradiction(
            "deepspeed", "cannot be combined with quantization_config: quantized weights cannot be sharded; choose one."
        )
    yield from _check_auto_sizes(config, "deepspeed")


def _check_auto_sizes(config: SFTConfig, sharded_by: str) -> Iterator[Contradiction]:
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(config.training, key) == AUTO:
            yield Contradiction(
                key,
                f"auto cannot be combined with {sharded_by}: the trial needs the complete model on one device. Give a "
                "number.",
            )


def _check_deepspeed_file(name: str) -> Iterator[Contradiction]:
    path = Path(name)
    special = special_file(path)
    if special is not None:
        yield Contradiction("deepspeed", special)
        return
    if not path.is_file():
        yield Contradiction("deepspeed", f"no such file: {name!r} {current_directory()}.")
        return
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        yield Contradiction("deepspeed", f"{name} is not valid JSON: {' '.join(str(error).split())}.")
        return
    if not isinstance(document, dict):
        yield Contradiction("deepspeed", f"{name} must contain a JSON object with DeepSpeed's settings.")
        return
    yield from _check_deepspeed_settings(document, f"{name}: ")


def _check_deepspeed_settings(document: Any, where: str) -> Iterator[Contradiction]:
    """Check DeepSpeed's settings, from a file or given in place.

    Args:
        document: the settings.
        where: the file, to begin the message with; empty without one.
    """
    if not isinstance(document, Mapping):
        yield Contradiction("deepspeed", "must be a JSON file's name, or a mapping of DeepSpeed's settings.")
        return
    zero = document.get("zero_optimization")
    if isinstance(zero, Mapping) and zero.get("stage") == 3 and zero.get(GATHER_ON_SAVE) is not True:
        yield Contradiction(
            "deepspeed",
            f"{where}ZeRO stage 3 requires {GATHER_ON_SAVE}: true; without it only shards of the model can be saved.",
        )
