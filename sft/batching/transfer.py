"""Copying a batch to the device that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def to_device(value: Any, device: torch.device) -> Any:
    """A tensor, or the tensors of a batch, on the device; the copy to a GPU is asynchronous."""
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if not torch.is_tensor(value) or value.device == device:
        return value
    if device.type == "cuda" and not value.is_pinned():
        value = value.pin_memory()  # a copy from pageable memory would block
    return value.to(device, non_blocking=True)
