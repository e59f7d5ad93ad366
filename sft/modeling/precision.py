"""The dtypes that a run computes in, where the settings are `auto`.

The choice depends on the settings and on the kind of device alone. Nothing is timed: a run on a busy machine, or on any
number of processes, comes to the same choice.

On a CPU `auto` is float32. In bfloat16, oneDNN generates code for each shape of a matrix product, and its own cache and
the one in torch's bindings keep it: with another number of tokens in each micro-batch, a process grows by hundreds of
MiB, and on a small model it saves no time, even on a CPU with AMX (`benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig

ON_CPU = "auto on a CPU; bf16: true would compute in bfloat16"


def has_bfloat16(device: str) -> bool:
    """Whether a device is a GPU that computes in bfloat16, not only emulates it."""
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(
    model: ModelConfig,
    training: TrainingConfig,
    context: DistributedContext,
    *,
    adapters_only: bool,
    all_have_bfloat16: bool | None = None,
) -> Precision:
    """Resolve the types that are set to `auto`.

    Weights that are trained are held in float32; frozen weights under adapters are held in 16 bits on a GPU.

    Args:
        model: the model section.
        training: the training section.
        context: this process.
        adapters_only: whether the model's own weights are frozen.
        all_have_bfloat16: whether the devices of all processes have it; None for those that are like this one.

    Raises:
        ConfigError: if the device does not support a type that the settings ask for.
    """
    on_gpu = context.device.startswith("cuda")
    has_bf16 = has_bfloat16(context.device) if all_have_bfloat16 is None else all_have_bfloat16
    if training.fp16 is True and not on_gpu:
        raise ConfigError(
            f"fp16: true needs a GPU and this run is on {context.device}; write fp16: auto, or fp16: false."
        )
    if training.bf16 is True and on_gpu and not has_bf16:
        raise ConfigError("bf16: true, but this GPU has no bfloat16; write bf16: auto (it will choose fp16).")
    mixed, reason = _resolve_mixed(training, context.device, has_bf16=has_bf16)
    weights = model.dtype
    if weights == "auto":
        weights = "float32"
        if adapters_only and on_gpu:
            weights = "bfloat16" if has_bf16 else "float16"
    return Precision(weights=weights, mixed=mixed, reason=reason)


def _resolve_mixed(training: TrainingConfig, device: str, *, has_bf16: bool) -> tuple[str, str]:
    """The type of autocast, and why."""
    if training.bf16 is True:
        return "bf16", "bf16: true"
    if training.fp16 is True:
        return "fp16", "fp16: true"
    if training.bf16 is False:
        return "no", "bf16: false"
    if not device.startswith("cuda"):
        return "no", ON_CPU if device == "cpu" else f"auto on {device}"
    if has_bf16:
        return "bf16", "auto: the GPUs have bfloat16"
    return ("no", "fp16: false") if training.fp16 is False else ("fp16", "auto: not all GPUs have bfloat16")
