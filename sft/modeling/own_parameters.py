"""A model's own parameters, with or without adapters around them, and their names for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from sft.common.text import first_of

_SHOWN_NAMES = 4
_PEFT_NAMES = re.compile(r"^base_model\.model\.|\.base_layer\b|\.modules_to_save\.default\b")


def is_of_adapters(name: str) -> bool:
    return ".lora_" in name or ".original_module" in name


def own_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's own parameters, named as without adapters."""
    for name, weight in model.named_parameters():
        if not is_of_adapters(name):
            yield _PEFT_NAMES.sub("", name), weight


def num_parameters(model: Any) -> int:
    return sum(unpacked_count(weight) for _, weight in own_parameters(model))


def kinds_of(names: Iterable[str]) -> str:
    """The first of different names, without the numbers of layers: `layers.*.mlp.experts.down_proj`."""
    kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name).removesuffix(".weight") for name in names))
    return first_of(kinds[:_SHOWN_NAMES], len(kinds))


def unpacked_count(parameter: Any) -> int:
    """Number of weights in a parameter; bitsandbytes packs two 4-bit weights into a byte."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    return int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
