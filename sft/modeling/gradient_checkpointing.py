"""Gradient checkpointing enabled and disabled through transformers, under the name that its version has for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def gradient_checkpointing_enabled(model: Any, options: Mapping[str, Any] | None) -> Iterator[None]:
    """Enable gradient checkpointing in this context, as Trainer would; None changes nothing.

    Args:
        model: the model, adapters included.
        options: as in `gradient_checkpointing_kwargs`, `every_n_layers` and `offload` included.
    """
    if options is None:
        yield
        return
    # transformers 5.23 renamed the method; earlier versions have the old name only.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    for_function = dict(options)
    for_layers = {key: for_function.pop(key) for key in ("every_n_layers", "offload") if key in for_function}
    getattr(model, f"{name}_checkpointing_enable")(for_function or None, **for_layers)
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()
