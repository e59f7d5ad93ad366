"""A model's or an optimizer's state copied to main memory, so that training goes on while the copy is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def copy_to_memory(state: Any) -> Any:
    """A copy that nothing changes any more: of every tensor, and of the mappings and lists around them.

    Tensors that are one (a head tied to the embedding) are one in the copy too, as those who save them look for.

    Args:
        state: mappings, lists, tuples, tensors, and plain values in them.
    """
    return _copied(state, {})


def state_bytes(state: Any) -> int:
    """Size of the tensors in a nested state, each once; those spread over processes as a whole."""
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
    """The same for two tensors only if they are the same numbers in the same place.

    Of a class of its own (quantized optimizer state, parts of a spread weight) a tensor tells no place.
    """
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.data_ptr() == 0:
        return (id(tensor),)
    return (str(tensor.device), tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))
