"""Adapters without a detour over float32: their linear layers cast their inputs themselves under autocast.

peft casts the input of a LoRA layer to the type of the adapter, which is float32 whatever the type of the base. Under
autocast the adapter's linear layers cast it back at once: two passes over every activation, and a copy of it that is
kept, for the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora


class CastsOutsideAutocast:
    """In place of a LoRA layer's `cast_input_dtype_enabled`: true where autocast does not cast."""

    def __init__(self, device_type: str):
        self._device_type = device_type

    def __bool__(self) -> bool:
        return not torch.is_autocast_enabled(self._device_type)


def leave_casts_to_autocast(model: Any) -> int:
    """Makes LoRA layers leave casts to autocast, where the numbers stay the same; returns how many.

    Not with DoRA, which computes more in the type of the input, nor with dropout on CPU, which rounds its factor to
    that type. On a GPU the factor is float32. There dropout may drop other elements than with the cast, as many:
    torch's kernel draws random numbers for vectors, which are longer in 16 bits.

    Args:
        model: on its device; without adapters nothing changes.
    """
    count = 0
    for module in model.modules():
        if type(module) is not lora.Linear or module.lora_variant:
            continue
        device_type = next(module.parameters()).device.type
        has_dropout = any(isinstance(dropout, torch.nn.Dropout) for dropout in module.lora_dropout.values())
        if device_type == "cuda" or not has_dropout:
            module.cast_input_dtype_enabled = CastsOutsideAutocast(device_type)  # type: ignore[assignment]
            count += 1
    return count
