"""Regional compilation: each of a model's repeated layers is compiled by itself, all of one kind sharing the result."""

from __future__ import annotations

import collections
import shutil
from typing import Any

from torch import nn

from sft.common.errors import ConfigError


def compile_layers(model: nn.Module, *, has_fixed_shape: bool, **options: Any) -> int:
    """Compiles the model's repeated layers in place (`torch.nn.Module.compile`); returns how many there are.

    The whole model as one graph would take many times as long to compile, and break at its loop over layers anyway.

    Args:
        model: with its adapters, if it has any.
        has_fixed_shape: every batch has the same number of tokens; else shapes that vary are compiled once for all.
        options: of `torch.compile`: `backend`, `mode`.

    Raises:
        ConfigError: if there is nothing to compile with, or nothing to compile.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and options.get("backend", "inductor") == "inductor" and not _has_compiler():
        raise ConfigError("torch_compile: on CPU it needs a C++ compiler (g++), and there is none. Leave it out.")
    layers = repeated_layers(model)
    if not layers:
        raise ConfigError(f"torch_compile: {type(model).__name__} has no repeated layers to compile. Leave it out.")
    for layer in layers:
        layer.compile(dynamic=False if has_fixed_shape else None, **options)
    return len(layers)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "c++", "clang++"))


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The members of the longest list of modules that has one class alone: a decoder's layers."""
    candidates = [
        list(module) for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(collections.Counter(type(item) for item in module)) == 1
    ]  # fmt: skip
    return max(candidates, key=len, default=[])
