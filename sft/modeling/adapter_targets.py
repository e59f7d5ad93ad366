"""Which layers and parameters get an adapter: what the settings name, resolved for a model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft.common.errors import ConfigError, ModelError
from sft.configuration.schema import LoRAConfig
from sft.modeling.experts import linear_routers, stacked_experts
from sft.modeling.own_parameters import kinds_of

ALL_LINEAR = "all-linear"
_PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What gets an adapter, as peft takes it and `adapter_config.json` states it."""

    modules: list[str] | str
    parameters: Sequence[str] = ()
    excluded: str | list[str] | None = None
    """Modules that get none: names, or an expression that they match."""
    patterns: dict[str, Any] = dataclasses.field(default_factory=dict)
    """peft's `rank_pattern` and `alpha_pattern`, where a checkpoint has them."""

    def options(self) -> dict[str, Any]:
        """Arguments of `LoraConfig`."""
        parameters = {"target_parameters": list(self.parameters)} if self.parameters else {}
        return {"target_modules": self.modules, "exclude_modules": self.excluded, **parameters, **self.patterns}


def takes_parameters() -> bool:
    """Whether the installed peft adds adapters to single parameters, such as stacked experts."""
    return any(field.name == "target_parameters" for field in dataclasses.fields(LoraConfig))


def resolve_targets(
    model: Any, lora: LoRAConfig, *, unused: Sequence[str] = (), unsuited: Sequence[str] = ()
) -> Targets:
    """What the settings name, as peft takes it for this model.

    Args:
        model: without adapters.
        lora: the settings.
        unused: modules that text does not reach; they get no adapter.
        unsuited: linear layers that an adapter cannot add to.

    Raises:
        ModelError: if a name matches nothing.
        ConfigError: if the installed peft cannot add adapters to parameters, which the settings name.
    """
    is_all, stacks = lora.target_modules == [ALL_LINEAR], stacked_experts(model)
    if lora.target_parameters and not takes_parameters():
        raise ConfigError("lora_config.target_parameters: needs peft 0.17 or newer: pip install -U peft.")
    refused = refused_layers(model) if is_all or stacks else []
    as_parameters = [name for name in refused if stacks and takes_as_parameter(model, name)]
    left_out = [*unused, *unsuited]
    if is_all:
        left_out += [name for name in refused if name not in as_parameters]
        left_out += [name for name in linear_routers(model) if name not in left_out]
    excluded = exclusion_of(left_out)
    wanted = _wanted_modules(model, lora, excluded)
    parameters = [f"{name}.weight" for name in wanted if name in as_parameters]
    parameters += _wanted_parameters(model, lora, excluded, stacks if is_all and takes_parameters() else ())
    modules: list[str] | str = ALL_LINEAR if is_all else lora.target_modules
    if stacks and (is_all or parameters):
        # peft would otherwise choose parameters itself for some architectures: the router, and experts in place of
        # linear layers whose names the experts have in published files.
        modules = [name for name in wanted if name not in as_parameters]
    return Targets(modules=modules, parameters=_shortened(model, parameters), excluded=excluded)


def saved_targets(checkpoint: Path) -> Targets | None:
    """What the adapters in a folder are on; None if it has none, or does not state it."""
    file = checkpoint / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "target_modules" not in saved:
        return None
    return Targets(
        modules=saved["target_modules"] or [],
        parameters=saved.get("target_parameters") or (),
        excluded=saved.get("exclude_modules"),
        patterns={key: saved[key] for key in _PATTERNS if saved.get(key)},
    )


def linear_layers(model: Any, excluded: str | list[str] | None = None) -> dict[str, Any]:
    """The linear layers that may get an adapter, by their names; the output layer is none of them."""
    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not is_excluded(name, excluded)
    }


def refused_layers(model: Any) -> list[str]:
    """The linear layers that peft adds no adapter to in this architecture, by their names.

    Some fused kernels read a layer's weight without calling the layer. And a name that stands for weights of stacked
    experts in published files (`gate_proj`) means these for peft, even if a layer has it too. peft is asked with a
    single small layer of each name beside the model's configuration.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    leaves = {name.rpartition(".")[2] for name in names}
    refused = {leaf for leaf in leaves if not _takes(model.config, leaf, LoraConfig(r=1, target_modules=[leaf]))}
    return [name for name in names if name.rpartition(".")[2] in refused]


def takes_as_parameter(model: Any, name: str) -> bool:
    """Whether peft adds an adapter to the weight of a linear layer, where it refuses the layer."""
    if not takes_parameters() or not model.get_submodule(name).weight.is_floating_point():
        return False
    leaf = name.rpartition(".")[2]
    config = LoraConfig(r=1, target_modules=[], target_parameters=[f"{leaf}.weight"])
    return _takes(model.config, leaf, config)


def exclusion_of(unused: Sequence[str]) -> str | None:
    """An expression that matches these modules and everything in them; None for no module."""
    return rf"({'|'.join(map(re.escape, unused))})(\..*)?" if unused else None


def is_excluded(name: str, excluded: str | list[str] | None) -> bool:
    """Whether peft excludes a module of this name."""
    if isinstance(excluded, str):
        return re.fullmatch(excluded, name) is not None
    return any(_matches(name, each) for each in excluded or [])


def _takes(config: Any, name: str, lora: LoraConfig) -> bool:
    layer = nn.Module()
    layer.config = config
    layer.add_module(name, nn.Linear(1, 1, device="meta"))
    try:
        inject_adapter_in_model(lora, layer)
    except ValueError:
        return False
    return True


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _wanted_modules(model: Any, lora: LoRAConfig, excluded: str | list[str] | None) -> list[str]:
    """The full names of the modules that get an adapter.

    Raises:
        ModelError: if a name matches none, which peft would ignore silently.
    """
    layers = linear_layers(model, excluded)
    if lora.target_modules == [ALL_LINEAR]:
        return list(layers)
    names = [name for name, _ in model.named_modules() if not is_excluded(name, excluded)]
    found = {target: [name for name in names if _matches(name, target)] for target in lora.target_modules}
    missing = [target for target, matches in found.items() if not matches]
    if missing or not (lora.target_modules or lora.target_parameters):
        available = sorted({name.rpartition(".")[2] for name in layers})
        stacks = stacked_experts(model)
        experts = f" Its experts are parameters, for target_parameters: {kinds_of(stacks)}." if stacks else ""
        raise ModelError(
            f"lora_config.target_modules [{', '.join(missing)}] match nothing in {type(model).__name__}. "
            f"Its linear layers: {', '.join(available)}. Use those, or {ALL_LINEAR}.{experts}"
        )
    return list(dict.fromkeys(name for matches in found.values() for name in matches))


def _wanted_parameters(
    model: Any, lora: LoRAConfig, excluded: str | list[str] | None, default: Iterable[str]
) -> list[str]:
    """The full names of the single parameters that get an adapter: those that are named, else the default.

    Raises:
        ModelError: if a name matches none that can have one.
    """
    if lora.target_parameters is None:
        return [name for name in default if not is_excluded(name.rpartition(".")[0], excluded)]
    names = [
        name
        for name, weight in model.named_parameters()
        if weight.dim() in (2, 3) and weight.is_floating_point() and "." in name
    ]
    found = {target: [name for name in names if _matches(name, target)] for target in lora.target_parameters}
    missing = [target for target, matches in found.items() if not matches]
    if missing:
        stacks = stacked_experts(model)
        shown = f"Its experts: {kinds_of(stacks)}." if stacks else "It has no stacked experts."
        raise ModelError(
            f"lora_config.target_parameters [{', '.join(missing)}] match no parameter of two or three dimensions in "
            f"{type(model).__name__}. {shown} Use names of its parameters, or leave the key out."
        )
    return list(dict.fromkeys(name for matches in found.values() for name in matches))


def _shortened(model: Any, names: Sequence[str]) -> list[str]:
    """The names by their last three parts, where these mean the same parameters: the same for every layer."""
    every, wanted = [name for name, _ in model.named_parameters()], set(names)
    short: dict[str, None] = {}
    for name in names:
        end = ".".join(name.split(".")[-3:])
        short[end if all(each in wanted for each in every if _matches(each, end)) else name] = None
    return list(short)
