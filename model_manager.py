"""Tokenizer and model: loaded, quantized, given adapters, checked against the settings, saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.cpu_speed import is_bfloat16_faster_on_cpu

if TYPE_CHECKING:
    pass


def resolve_precision(
    model: ModelConfig, training: TrainingConfig, context: DistributedContext, *, adapters_only: bool
) -> Precision:
    """Decides the types that are left to `auto`.

    Raises:
        ConfigError: if a type is asked for that the device does not have.
    """
    on_gpu = context.device.startswith("cuda")
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if training.fp16 is True and not on_gpu:
        raise ConfigError(
            f"fp16: true needs a GPU and this run is on {context.device}; write fp16: auto, or fp16: false."
        )
    if training.bf16 is True and on_gpu and not has_bf16:
        raise ConfigError("bf16: true, but this GPU has no bfloat16; write bf16: auto (it will choose fp16).")
    if context.device == "cpu" and context.world_size == 1 and training.bf16 == "auto":
        # Several processes would have to agree, and share the cores that are measured.
        has_bf16 = is_bfloat16_faster_on_cpu()
    if training.bf16 is True or (training.bf16 == "auto" and training.fp16 is not True and has_bf16):
        mixed = "bf16"
    elif training.fp16 is True or (training.fp16 == "auto" and training.bf16 == "auto" and on_gpu):
        mixed = "fp16"
    else:
        mixed = "no"
    weights = model.dtype
    if weights == "auto":
        weights = "float32"
        if adapters_only and on_gpu:
            weights = "bfloat16" if has_bf16 else "float16"
    return Precision(weights=weights, mixed=mixed)
