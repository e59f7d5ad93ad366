"""Gradient checkpointing switched on and off by hand, in transformers' own way, whichever name it has there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def gradient_checkpointing_enabled(model: Any, options: Mapping[str, Any] | None) -> Iterator[None]:
    """The model with its layers checkpointed while this lasts, as Trainer would do it; None leaves it as it is.

    Args:
        model: the model, with its adapters.
        options: what `gradient_checkpointing_kwargs` may hold, `every_n_layers` and `offload` among it.
    """
    if options is None:
        yield
        return
    # transformers 5.23 renamed it; earlier versions know the old name alone.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    for_function = dict(options)
    for_layers = {key: for_function.pop(key) for key in ("every_n_layers", "offload") if key in for_function}
    getattr(model, f"{name}_checkpointing_enable")(for_function or None, **for_layers)
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
