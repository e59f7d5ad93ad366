"""Regional compilation: each repeated layer of a model is compiled separately, and all of a kind share the result."""

from __future__ import annotations

from typing import Any

from torch import nn

from sft.common.errors import ConfigError


def compile_layers(model: nn.Module, *, has_fixed_shape: bool, **options: Any) -> int:
    """Compile the model's repeated layers in place (`torch.nn.Module.compile`); returns their number.

    The full model as one graph would take many times as long to compile, and would break at its loop over layers.

    Args:
        model: the model, adapters included.
        has_fixed_shape: every batch has the same number of tokens; otherwise varying shapes are compiled once for all.
        options: of `torch.compile`: `backend`, `mode`.

    Raises:
        ConfigError: if the model has no repeated layers.
    """
    layers = repeated_layers(model)
    if not layers:
        raise ConfigError(
            f"torch_compile: {type(model).__name__} has no repeated layers to compile. Write torch_compile: false."
        )
    for layer in layers:
        layer.compile(dynamic=False if has_fixed_shape else None, **options)
    return len(layers)


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`. torch has no public way back."""
    for layer in repeated_layers(model):
        layer._compiled_call_impl = None


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The longest module list whose members all have the same class: a decoder's layers."""
    candidates = [
        list(module)
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len({type(item) for item in module}) == 1
    ]
    return max(candidates, key=len, default=[])
