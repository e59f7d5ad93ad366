"""The model of a shape with as many layers as fit on the device."""

from __future__ import annotations

from dataclasses import replace

import torch

from sft.batching.memory import MemoryFacts, estimate_memory
from sft.check_gpu.bench import Bench
from sft.check_gpu.random_model import build_random_model
from sft.check_gpu.shapes import Shape
from sft.modeling.footprint import footprint
from sft.modeling.precision import has_bfloat16
from sft.modeling.supervised_loss import chunk_bytes_on
from sft.processes.device_memory import available_memory_bytes

_USABLE_SHARE = 0.85
"""Of the free memory: the arithmetic is off by some percent."""
_ADAPTER_SHARE = 0.005
"""Trainable parameters of rank 16 on all linear layers of an 8B model, as a share of all."""


def fitting_shape(bench: Bench, shape: Shape, *, tokens: int, has_adapters: bool, checkpointing: bool) -> Shape | None:
    """The shape with as many layers as fit, by the arithmetic of the dry run; None if not even one does.

    Args:
        bench: the device.
        shape: with all layers.
        tokens: of a micro-batch.
        has_adapters: LoRA on frozen weights in 16 bits, instead of training all weights.
        checkpointing: whether activations are recomputed.
    """
    room = available_memory_bytes(bench.device) * _USABLE_SHARE
    mixed = "bf16" if has_bfloat16(bench.device) else "fp16"
    frozen = torch.bfloat16 if mixed == "bf16" else torch.float16
    for count in range(shape.num_layers, 0, -1):
        fewer = replace(shape, num_layers=count)
        dtype = frozen if has_adapters else torch.float32
        size = footprint(build_random_model(fewer, "meta", dtype))
        if has_adapters:
            size = replace(size, num_trainable_parameters=round(_ADAPTER_SHARE * size.num_parameters))
        facts = MemoryFacts(
            footprint=size,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            tokens=tokens,
            longest_row=tokens,
            weights=str(dtype).removeprefix("torch."),
            mixed=mixed if bench.on_gpu else "no",
            optimizer="adamw_torch_fused",
            gradient_checkpointing=checkpointing,
            device=bench.device,
            logits_chunk_bytes=chunk_bytes_on(torch.device(bench.device)),
        )
        if estimate_memory(facts).total_bytes <= room:
            return fewer
    return None


def shape_text(name: str, full: Shape, used: Shape) -> str:
    """The name of a model, with the layers that it has if these are not all."""
    return name if used == full else f"{name}, {used.num_layers} of {full.num_layers} layers"
