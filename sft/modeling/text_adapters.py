"""Adapters on the part of a model that text passes through, and lines about what they leave frozen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from sft.configuration.schema import LoRAConfig
from sft.modeling.adapter_targets import ALL_LINEAR, is_excluded, refused_layers, resolve_targets, saved_targets
from sft.modeling.adapters import add_adapters
from sft.modeling.frozen_weights import adapter_lines
from sft.modeling.own_parameters import kinds_of
from sft.modeling.text_path import try_text_path, unused_line

logger = logging.getLogger("sft.model")


def add_text_adapters(model: Any, lora: LoRAConfig, *, resumed: Path | None = None) -> Any:
    """Add adapters to the layers that the settings name, but for modules that a row of text does not reach.

    Args:
        model: without adapters.
        lora: the settings.
        resumed: a checkpoint to be resumed: its adapters stay where they are.

    Raises:
        ModelError: if a name matches no layer.
        ConfigError: if peft cannot add such adapters to this model.
    """
    path = try_text_path(model)
    unused, is_all = path.unused, lora.target_modules == [ALL_LINEAR]
    targets = saved_targets(resumed) if resumed is not None else None
    targets = targets or resolve_targets(model, lora, unused=unused, unsuited=path.unsuited)
    refused = [name for name in refused_layers(model) if is_excluded(name, targets.excluded)] if is_all else []
    line = unused_line(model, unused, adapters=targets.excluded is not None)
    model = add_adapters(model, lora, targets)
    if refused:
        logger.info("peft adds no adapters to %s in this architecture: all-linear leaves them out.", kinds_of(refused))
    for each in filter(None, [line, *adapter_lines(model, unused, all_linear=is_all)]):
        logger.info(each)
    return model
