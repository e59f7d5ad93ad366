"""Low-rank adapters (LoRA): the model with them, and what is saved of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers.pytorch_utils import Conv1D

from sft.common.errors import ConfigError, ModelError, one_line
from sft.configuration.schema import LoRAConfig
from sft.modeling.adapter_targets import ALL_LINEAR, Targets, is_excluded, linear_layers, resolve_targets


def add_adapters(model: Any, lora: LoRAConfig, targets: Targets | None = None) -> Any:
    """Add adapters to the layers that the settings name, and freeze everything else.

    Args:
        model: without adapters.
        lora: the settings.
        targets: what gets one; None for what the settings name.

    Raises:
        ModelError: if a name matches nothing.
        ConfigError: if peft cannot add such adapters to this model.
    """
    targets = resolve_targets(model, lora) if targets is None else targets
    _check_modules_to_save(
        model,
        lora.modules_to_save or [],
        [name for name, _ in model.named_modules() if not is_excluded(name, targets.excluded)],
    )
    layers = linear_layers(model, targets.excluded)
    is_all = targets.modules == ALL_LINEAR
    targeted = [layer for name, layer in layers.items() if is_all or is_excluded(name, targets.modules)]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=cast(int, lora.lora_alpha),  # peft accepts fractions too
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        task_type=lora.task_type,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        # GPT-2's Conv1D stores its weight transposed.
        fan_in_fan_out=bool(targeted) and all(isinstance(module, Conv1D) for module in targeted),
        **targets.options(),
    )
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _as_config_error(error, lora, layers) from error


def saved_adapter_state(model: Any) -> dict[str, Any]:
    """What `save_pretrained` writes of a model with adapters, under the names that its whole state has.

    `save_pretrained(folder, state_dict=...)` takes this, or a copy of it, instead of the whole state.
    """
    state = model.state_dict()
    saved = {id(tensor) for tensor in get_peft_model_state_dict(model, state_dict=state).values()}
    return {name: tensor for name, tensor in state.items() if id(tensor) in saved}


def _as_config_error(error: Exception, lora: LoRAConfig, linear_layers: Iterable[str]) -> ConfigError:
    """peft's error as one line that begins with the key that it is about."""
    text = one_line(error).rstrip(".")
    for field in dataclasses.fields(lora):
        value = getattr(lora, field.name)
        if (
            field.default is not dataclasses.MISSING
            and value != field.default
            and re.search(rf"\b{field.name}\b", text)
        ):
            shown, wanted = (str(each).lower() if isinstance(each, bool) else each for each in (value, field.default))
            is_parameter = "ParamWrapper" in text
            where = "the experts of this model, which are one parameter" if is_parameter else "this model"
            other = "target_parameters: [] for experts without adapters" if is_parameter else "other target_modules"
            return ConfigError(
                f"lora_config.{field.name}: {shown} is not possible with adapters on {where} ({text}). "
                f"Write {field.name}: {wanted}, or {other}."
            )
    available = ", ".join(sorted({name.rpartition(".")[2] for name in linear_layers}))
    return ConfigError(f"lora_config.target_modules: {text}. The model's linear layers: {available}.")


def _check_modules_to_save(model: Any, wanted: list[str], names: Sequence[str]) -> None:
    missing = [target for target in wanted if not any(name == target or name.endswith("." + target) for name in names)]
    if missing:
        last_parts = {name.rpartition(".")[2] for name in names}
        available = sorted(part for part in last_parts if part and not part.isdigit())
        raise ModelError(
            f"lora_config.modules_to_save [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its modules: {', '.join(available)}."
        )
