"""The state of a model or an optimizer copied to host memory, so that training continues while the copy is written.

A copy from a GPU to ordinary memory passes through a buffer of the driver, tensor by tensor, and each waits for the one
before. Into pinned memory all of them are requested at once, and are as fast as the bus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sft.common.device_errors import is_out_of_memory

_ALIGNMENT = 256
_BLOCK_BYTES = 2**30
"""Size of a block of pinned memory, unless a tensor is larger. torch rounds each block up to a power of two."""


class StateCopier:
    """Copies a state to main memory; from a GPU, into pinned memory that is kept for the next copy.

    A copy is valid until the next one is made: whoever writes it to disk must have finished by then.
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    @property
    def held_bytes(self) -> int:
        """Size of the pinned memory, which stays allocated for the next copy."""
        return sum(block.nbytes for block in self._blocks)

    def copy(self, state: Any) -> Any:
        """A copy as by `copy_to_memory`, with one synchronization for all tensors on a GPU.

        Raises:
            RuntimeError: if there is no room in main memory (`is_out_of_memory`).
        """
        on_gpu = {_identity(tensor): tensor.detach() for tensor in _tensors(state) if _can_be_pinned(tensor)}
        copies: dict[tuple, torch.Tensor] = {}
        try:
            for key, host in self._pinned(on_gpu).items():
                copies[key] = host.copy_(on_gpu[key], non_blocking=True)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._blocks = []
            raise
        finally:
            if copies:
                _wait_for_copies()
        return _copied(state, copies)

    def _pinned(self, tensors: Mapping[tuple, torch.Tensor]) -> dict[tuple, torch.Tensor]:
        """A tensor in pinned memory for each tensor, with the same shape and dtype.

        Each is a storage of its own: `torch.save` writes storages in full, and so would write a block per tensor.
        """
        sizes = {key: -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT for key, tensor in tensors.items()}
        rest = sum(sizes.values())
        used = [0] * len(self._blocks)
        found = {}
        for key in sorted(sizes, key=lambda each: -sizes[each]):
            fits = (n for n, block in enumerate(self._blocks) if used[n] + sizes[key] <= block.nbytes)
            number = next(fits, len(self._blocks))
            if number == len(self._blocks):
                # Several smaller blocks hold the rest with less waste than one that is rounded up.
                size = min(1 << rest.bit_length() - 1, _BLOCK_BYTES)
                self._blocks.append(_pinned_block(max(sizes[key], size)))
                used.append(0)
            tensor = tensors[key]
            values = torch.frombuffer(
                self._blocks[number], dtype=tensor.dtype, count=tensor.numel(), offset=used[number]
            )
            found[key] = values.view(tensor.shape)
            used[number] += sizes[key]
            rest -= sizes[key]
        return found


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


def _can_be_pinned(tensor: torch.Tensor) -> bool:
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_contiguous()
    return is_plain and _is_on_gpu(tensor) and tensor.numel() > 0


def _is_on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _pinned_block(num_bytes: int) -> np.ndarray:
    """Pinned memory, in the size that torch allocates for this many bytes: the next power of two."""
    return torch.empty(1 << (num_bytes - 1).bit_length(), dtype=torch.uint8, pin_memory=True).numpy()


def _wait_for_copies() -> None:
    torch.cuda.current_stream().synchronize()
