"""Weights that are saved under other names than the model has for them.

transformers 5 joins the experts of a layer, and renames modules of some architectures, when it loads published files;
`save_pretrained` writes the published names again, so that other programs can read the model. Whoever reads such a file
by the model's own names would find nothing and leave those weights as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.distributed.fsdp import FSDPModule

_WEIGHTS = "model*.safetensors"


def has_other_names(folder: Path, model: Any) -> bool:
    """Whether files of a whole model, as `save_pretrained` writes it, lack some of the model's own names.

    Args:
        folder: with the files; one without them, of adapters or shards, has no other names.
        model: without adapters, sharded or not.
    """
    saved: set[str] = set()
    for path in sorted(folder.glob(_WEIGHTS)):
        with safe_open(path, "pt") as file:
            saved.update(file.keys())
    # A weight under two names (a tied head) is saved under one of them.
    own = {name for name, _ in model.named_parameters()}
    alike = {name for name, _ in model.named_parameters(remove_duplicate=False)} - own
    return bool(saved) and bool(own - saved) and not own - saved <= _partners(model, alike)


def read_by_own_names(folder: Path, model: Any) -> dict[str, torch.Tensor]:
    """All weights of such a folder in host memory, by the names that the model has for them.

    Args:
        folder: with the files and config.json.
        model: as above; it stays as it is.
    """
    # FSDP makes a class of its own from the model's.
    plain: Any = next(each for each in type(model).__mro__ if not issubclass(each, FSDPModule))
    return plain.from_pretrained(folder, dtype=model.dtype).state_dict()


def _partners(model: Any, alike: set[str]) -> set[str]:
    """The first names of weights that have a second one."""
    everything = dict(model.named_parameters(remove_duplicate=False))
    twice = {id(everything[name]) for name in alike}
    return {name for name, weight in everything.items() if id(weight) in twice}
