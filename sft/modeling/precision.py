"""The dtypes that a run computes in, where the settings are `auto`."""

from __future__ import annotations

import time

import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig

MATRIX_SIZE = 512
ROUNDS = 5
CLEARLY_FASTER = 1.5
"""Least ratio of speeds: a smaller one could be noise, and a resumed run must come to the same choice."""


def resolve_precision(
    model: ModelConfig, training: TrainingConfig, context: DistributedContext, *, adapters_only: bool
) -> Precision:
    """Resolve the types that are set to `auto`.

    Weights that are trained are held in float32; frozen weights under adapters are held in 16 bits on a GPU. On a CPU,
    bfloat16 is used where it is measured to be faster.

    Raises:
        ConfigError: if the device does not support a type that the settings ask for.
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
        # Several processes would have to agree, and would share the cores that are measured.
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


def is_bfloat16_faster_on_cpu() -> bool:
    """Measure whether this CPU multiplies matrices clearly faster in bfloat16 than in float32; takes milliseconds.

    Processors with AMX are several times faster in bfloat16. Many others report support for it and are half as fast.
    """
    return _best_seconds(torch.float32) > CLEARLY_FASTER * _best_seconds(torch.bfloat16)


def _best_seconds(dtype: torch.dtype) -> float:
    """The fastest of a few matrix products: noise only ever adds time."""
    left, right = (torch.ones(MATRIX_SIZE, MATRIX_SIZE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):  # the first one prepares the kernel
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
