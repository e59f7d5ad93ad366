"""What the program does with a tiny model of each architecture: the rows of `docs/architectures.md`."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sft.configuration.schema import LoRAConfig
from sft.modeling.merging import merge_adapters
from sft.modeling.text_adapters import add_text_adapters
from tests.support.architectures import build_architecture
from tests.support.layouts import layout_of
from tests.support.small_models import with_random_adapters


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one architecture."""

    obstacle: str | None
    """Why its rows are padded; None if they are packed."""
    by_document: tuple[str, ...]
    """Kinds of modules that run row by row."""
    adapted: float
    """Share of the weights of its layers that `all-linear` puts an adapter beside."""
    is_exported: bool
    """Whether merged adapters, saved and loaded by transformers alone, give the same logits."""


def outcome_of(name: str) -> Outcome:
    layout = layout_of(build_architecture(name))
    adapted = _with_adapters(name)
    share = _adapted_share(adapted)
    mixers = layout.findings.mixers_by_document
    return Outcome(
        obstacle=layout.obstacle,
        by_document=tuple(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", mixer) for mixer in mixers)),
        adapted=share,
        is_exported=_is_exported(adapted),
    )


def _with_adapters(name: str) -> Any:
    torch.manual_seed(1)
    model = add_text_adapters(build_architecture(name), LoRAConfig(r=4, target_modules=["all-linear"])).eval()
    with_random_adapters(model)
    return model


def _adapted_share(model: Any) -> float:
    """Matrices of the layers, stacked ones included, without embeddings and the output layer."""
    base = model.get_base_model()
    outside = {
        id(weight)
        for module in (base.get_input_embeddings(), base.get_output_embeddings())
        for weight in module.parameters()
    }
    own = {
        name: weight
        for name, weight in base.named_parameters()
        if ".lora_" not in name and weight.dim() > 1 and re.search(r"\.\d+\.", name) and id(weight) not in outside
    }
    reached = sum(weight.numel() for name, weight in own.items() if ".base_layer." in name)
    return reached / sum(weight.numel() for weight in own.values())


def _is_exported(model: Any) -> bool:
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = model(input_ids=ids).logits
        merge_adapters(model).save_pretrained(folder)
        found = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
