"""The state of a model or an optimizer copied to host memory, so that training continues while the copy is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def copy_to_memory(state: Any) -> Any:
    """Copy every tensor, and the mappings and lists around them.

    Tensors that share memory entirely (a head tied to the embedding) are one tensor in the copy too, which is how
    `save_pretrained` recognizes tied weights.

    Args:
        state: nested mappings, lists and tuples of tensors and plain values.
    """
    return _copied(state, {})


def state_bytes(state: Any) -> int:
    """Bytes of the tensors in a nested state, shared ones counted once; sharded ones count in full."""
    sizes = {_identity(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(state)}
    return sum(sizes.values())


def _copied(value: Any, done: dict[tuple, torch.Tensor]) -> Any:
    if torch.is_tensor(value):
        key = _identity(value)
        if key not in done:
            done[key] = value.detach().to("cpu", copy=True)
        return done[key]
    if isinstance(value, Mapping):
        return {name: _copied(each, done) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each, done) for each in value)
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _identity(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors only if they are the same view of the same memory.

    Tensor subclasses (quantized optimizer state, shards of a weight) have no usable address: each is its own identity.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.data_ptr() == 0:
        return (id(tensor),)
    return (str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
