"""Weights spread over processes: FSDP2 (`torch.distributed.fsdp.fully_shard`), layer by layer.

By torch's own function rather than through accelerate, which does it on accelerators alone: so what runs on a GPU is
what the tests run on CPUs. And it is done before anything is computed with the model: no device ever holds all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from sft.modeling.compiling import repeated_layers


def shard_weights(model: Any, device_type: str, world_size: int, *, mixed: str, reshard_after_forward: bool) -> int:
    """Spreads a model's weights over all processes, in place, and moves this process's part to its device.

    A process group must be open, and every process must have the same weights.

    Args:
        model: with its adapters.
        device_type: `cpu` or `cuda`.
        world_size: number of processes.
        mixed: autocast: `bf16` or `no`.
        reshard_after_forward: let a layer's weights go between its forward and its backward pass.

    Returns:
        How many layers have their weights gathered one after the other.
    """
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device_type, (world_size,)),
        # In 16 bits a sum over many processes would lose what the single gradients have.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed == "bf16" else None, reduce_dtype=torch.float32
        ),
    }
    layers = _layers(model)
    for layer in layers:
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or getattr(output, "weight", None) is not embedding.weight:
        # Of no use again before the next step. Tied to the output layer, it stays with it.
        fully_shard(embedding, reshard_after_forward=reshard_after_forward, **options)
    fully_shard(model, **options)
    return len(layers)


def reshard_weights(model: nn.Module) -> None:
    """Lets all weights go that a forward pass gathered and that would stay for the backward pass.

    An optimizer made of them instead of their parts would train nothing.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are spread over processes."""
    return isinstance(model, FSDPModule)


def _layers(model: Any) -> list[nn.Module]:
    """What the model says must not be split, or else its longest list of equal modules."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or repeated_layers(model)
