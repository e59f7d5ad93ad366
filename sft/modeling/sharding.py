"""Weights sharded over processes with FSDP2 (`torch.distributed.fsdp.fully_shard`), layer by layer.

torch's own function is used instead of accelerate, which supports accelerators only: tests on CPU run the same code as
GPUs do. Sharding precedes any computation with the model: no device ever holds all weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from sft.modeling.compiling import repeated_layers
from sft.modeling.mapped_weights import widen_weights


def shard_weights(
    model: Any,
    device_type: str,
    world_size: int,
    *,
    weights: torch.dtype,
    mixed: str,
    reshard_after_forward: bool,
) -> int:
    """Shard a model's weights over all processes, in place, and move this process's shards to its device.

    A process group must be open, and every process must have the same weights.

    Args:
        model: the model, adapters included.
        device_type: `cpu` or `cuda`.
        world_size: number of processes.
        weights: dtype of the weights; those that are still in fewer bytes are cast, layer by layer.
        mixed: autocast: `bf16` or `no`.
        reshard_after_forward: free a layer's gathered weights between its forward and its backward pass.

    Returns:
        The number of layers that are gathered one at a time.
    """
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device_type, (world_size,)),
        # A 16-bit sum over many processes would lose precision.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if mixed == "bf16" else None, reduce_dtype=torch.float32
        ),
    }
    layers = _layers(model)
    for layer in layers:
        widen_weights(layer, weights)
        fully_shard(layer, reshard_after_forward=reshard_after_forward, **options)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or getattr(output, "weight", None) is not embedding.weight:
        # Not needed again in this step. If tied to the output layer, both stay in the root module.
        widen_weights(embedding, weights)
        fully_shard(embedding, reshard_after_forward=reshard_after_forward, **options)
    widen_weights(model, weights)
    fully_shard(model, **options)
    return len(layers)


def reshard_weights(model: nn.Module) -> None:
    """Free all weights that a forward pass gathered and kept for the backward pass.

    An optimizer created from gathered weights instead of their shards would train nothing.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: Any) -> bool:
    """Whether a model's weights are sharded over processes."""
    return isinstance(model, FSDPModule)


def _layers(model: Any) -> list[nn.Module]:
    """The modules that the model declares as not splittable, or else its repeated layers."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names] or repeated_layers(model)
