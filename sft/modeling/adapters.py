"""Low-rank adapters (LoRA): which layers get one, and the model with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft.common.errors import ModelError
from sft.configuration.schema import LoRAConfig

ALL_LINEAR = "all-linear"


def add_adapters(model: Any, lora: LoRAConfig) -> Any:
    """Add adapters to the layers that the settings name, and freeze everything else.

    Raises:
        ModelError: if a name matches no layer.
    """
    linear_layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    targets = _resolve_targets(model, lora.target_modules, linear_layers)
    _check_modules_to_save(model, lora.modules_to_save or [])
    targeted = [linear_layers[name] for name in targets if name in linear_layers]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=cast(int, lora.lora_alpha),  # peft accepts fractions too
        target_modules=ALL_LINEAR if lora.target_modules == [ALL_LINEAR] else lora.target_modules,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        task_type=lora.task_type,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        # GPT-2's Conv1D stores its weight transposed.
        fan_in_fan_out=bool(targeted) and all(isinstance(module, Conv1D) for module in targeted),
    )
    return get_peft_model(model, config)


def _resolve_targets(model: Any, wanted: Sequence[str], linear_layers: dict[str, nn.Module]) -> list[str]:
    """The full names of the layers that get an adapter.

    Raises:
        ModelError: if a name matches no layer, which peft would ignore silently.
    """
    if list(wanted) == [ALL_LINEAR]:
        return list(linear_layers)
    names = [name for name, _ in model.named_modules()]
    matches = {target: [name for name in names if name == target or name.endswith("." + target)] for target in wanted}
    missing = [target for target, found in matches.items() if not found]
    if missing or not wanted:
        available = sorted({name.rpartition(".")[2] for name in linear_layers})
        raise ModelError(
            f"lora_config.target_modules [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its linear layers: {', '.join(available)}. Use those, or {ALL_LINEAR}."
        )
    return [name for found in matches.values() for name in found]


def _check_modules_to_save(model: Any, wanted: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    missing = [target for target in wanted if not any(name == target or name.endswith("." + target) for name in names)]
    if missing:
        last_parts = {name.rpartition(".")[2] for name in names}
        available = sorted(part for part in last_parts if part and not part.isdigit())
        raise ModelError(
            f"lora_config.modules_to_save [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its modules: {', '.join(available)}."
        )
