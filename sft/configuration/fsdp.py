"""State spread over processes, by FSDP or DeepSpeed: what does not go together with it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from sft.configuration.batch_sizes import AUTO
from sft.configuration.schema import SFTConfig

SPREADABLE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")
"""Optimizers whose state is cut as the weights are: number by number."""


def fsdp_contradictions(config: SFTConfig) -> Iterator[tuple[str, str]]:
    """Key and message of what FSDP does not go together with."""
    training = config.training
    passed = training.passed_through
    if config.fsdp is None:
        return
    if passed.deepspeed:
        yield "deepspeed", "fsdp spreads the weights too; choose one."
    if config.quantization is not None:
        yield (
            "fsdp",
            "quantized weights cannot be spread; leave fsdp out: each process then holds all of them, in 4 bits half a "
            "byte a weight.",
        )
    if training.fp16 is True:
        yield "fp16", "fsdp computes in bfloat16 or float32; write bf16: true, or leave fp16 out."
    if training.optim not in SPREADABLE_OPTIMIZERS:
        yield "optim", f"with fsdp its state cannot be spread; choose {' | '.join(SPREADABLE_OPTIMIZERS)}."
    if training.torch_compile:
        yield "torch_compile", "was never tried with fsdp; choose one."
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(training, key) == AUTO:
            yield key, "auto tries the whole model on one device, and fsdp spreads it over several; give a number."
    if passed.save_only_model and config.fsdp.checkpoints == "sharded":
        yield "save_only_model", "is for weights to be used elsewhere, which sharded ones are not; choose one."


GATHERED = "stage3_gather_16bit_weights_on_model_save"


def deepspeed_contradictions(config: SFTConfig) -> Iterator[tuple[str, str]]:
    """Key and message of what is wrong with `deepspeed`, which is a file (or the settings themselves) of its own."""
    setting = config.training.passed_through.deepspeed
    if not setting:
        return
    if importlib.util.find_spec("deepspeed") is None:
        yield "deepspeed", "needs the package deepspeed: pip install deepspeed, or write fsdp: {} in its place."
    if isinstance(setting, str):
        yield from _check_file(setting)
    if config.quantization is not None:
        yield "deepspeed", "quantized weights cannot be spread; leave it out."
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        if getattr(config.training, key) == AUTO:
            yield key, "auto tries the whole model on one device, and DeepSpeed spreads it over several; give a number."


def _check_file(name: str) -> Iterator[tuple[str, str]]:
    path = Path(name)
    if not path.is_file():
        yield "deepspeed", f"there is no file {name!r} (seen from {Path.cwd()})."
        return
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield "deepspeed", f"{name} is no JSON: {' '.join(str(error).split())}."
        return
    if not isinstance(document, dict):
        yield "deepspeed", f"{name} holds no mapping of DeepSpeed's settings."
        return
    zero = document.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage") == 3 and zero.get(GATHERED) is not True:
        yield "deepspeed", f"{name}: with stage 3, write {GATHERED}: true, or no model could be saved, only its parts."
