"""Low-rank adapters (LoRA): which layers get one, and the model with them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft.common.errors import ConfigError, ModelError, one_line
from sft.configuration.schema import LoRAConfig

ALL_LINEAR = "all-linear"


def add_adapters(model: Any, lora: LoRAConfig, *, excluded: str | list[str] | None = None) -> Any:
    """Add adapters to the layers that the settings name, and freeze everything else.

    Args:
        model: without adapters.
        lora: the settings.
        excluded: modules that get none, as peft takes them: names, or an expression that they match.

    Raises:
        ModelError: if a name matches no layer.
        ConfigError: if peft cannot add such adapters to this model.
    """
    modules = {name: module for name, module in model.named_modules() if not _is_excluded(name, excluded)}
    linear_layers: dict[str, nn.Module] = {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    targets = _resolve_targets(model, lora.target_modules, list(modules), linear_layers)
    _check_modules_to_save(model, lora.modules_to_save or [], list(modules))
    targeted = [linear_layers[name] for name in targets if name in linear_layers]
    config = LoraConfig(
        exclude_modules=excluded,
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
    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _as_config_error(error, lora, linear_layers) from error


def refused_layers(model: Any) -> list[str]:
    """The linear layers that peft adds no adapter to in this architecture, by their names.

    Some fused kernels read a layer's weight without calling the layer. peft is asked with a single small layer of each
    name beside the model's configuration.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    refused = {name for name in {name.rpartition(".")[2] for name in names} if not _takes_adapter(model.config, name)}
    return [name for name in names if name.rpartition(".")[2] in refused]


def _takes_adapter(config: Any, name: str) -> bool:
    layer = nn.Module()
    layer.config = config
    layer.add_module(name, nn.Linear(1, 1, device="meta"))
    try:
        inject_adapter_in_model(LoraConfig(r=1, target_modules=[name]), layer)
    except ValueError:
        return False
    return True


def exclusion_of(unused: Sequence[str]) -> str | None:
    """An expression that matches these modules and everything in them, for `add_adapters`; None for no module."""
    return rf"({'|'.join(map(re.escape, unused))})(\..*)?" if unused else None


def saved_exclusion(checkpoint: Path) -> tuple[bool, str | list[str] | None]:
    """Whether a folder has adapters, and the modules that were excluded when they were made."""
    file = checkpoint / "adapter_config.json"
    if not file.is_file():
        return False, None
    return True, json.loads(file.read_text(encoding="utf-8")).get("exclude_modules")


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
            where = "the experts of this model, which are one parameter" if "ParamWrapper" in text else "this model"
            return ConfigError(
                f"lora_config.{field.name}: {shown} is not possible with adapters on {where} ({text}). "
                f"Write {field.name}: {wanted}, or name other layers in target_modules."
            )
    available = ", ".join(sorted({name.rpartition(".")[2] for name in linear_layers}))
    return ConfigError(f"lora_config.target_modules: {text}. The model's linear layers: {available}.")


def _is_excluded(name: str, excluded: str | list[str] | None) -> bool:
    """Whether peft excludes a module of this name."""
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(name == each or name.endswith("." + each) for each in excluded or [])


def _resolve_targets(
    model: Any, wanted: Sequence[str], names: Sequence[str], linear_layers: dict[str, nn.Module]
) -> list[str]:
    """The full names of the layers that get an adapter; `names` are those of the modules that may get one.

    Raises:
        ModelError: if a name matches no layer, which peft would ignore silently.
    """
    if list(wanted) == [ALL_LINEAR]:
        return list(linear_layers)
    matches = {target: [name for name in names if name == target or name.endswith("." + target)] for target in wanted}
    missing = [target for target, found in matches.items() if not found]
    if missing or not wanted:
        available = sorted({name.rpartition(".")[2] for name in linear_layers})
        raise ModelError(
            f"lora_config.target_modules [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its linear layers: {', '.join(available)}. Use those, or {ALL_LINEAR}."
        )
    return [name for found in matches.values() for name in found]


def _check_modules_to_save(model: Any, wanted: list[str], names: Sequence[str]) -> None:
    missing = [target for target in wanted if not any(name == target or name.endswith("." + target) for name in names)]
    if missing:
        last_parts = {name.rpartition(".")[2] for name in names}
        available = sorted(part for part in last_parts if part and not part.isdigit())
        raise ModelError(
            f"lora_config.modules_to_save [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its modules: {', '.join(available)}."
        )
