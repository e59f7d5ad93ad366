"""Weights that stay in their files, mapped into memory, until they are sharded.

A tensor that is loaded in the dtype of its file is not copied: it is a view of the mapped file, whose pages all
processes of a machine share, and which the system can drop. A cast copies it. So weights in 16 bits that are to be
trained in float32 are loaded as they are, and cast one layer at a time when they are sharded: no process ever has all
of them in float32. The values are the same, since each number in 16 bits is one in float32, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_NARROW = {torch.bfloat16: "BF16", torch.float16: "F16"}
"""dtype -> its name in safetensors files."""
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def mappable_dtype(described: "PretrainedConfig | None", weights: torch.dtype) -> torch.dtype | None:
    """The dtype in which a model's weights may be loaded to be cast later; None if that is of no use.

    Args:
        described: the model's config.json.
        weights: dtype of the weights in training.
    """
    if described is None or weights != torch.float32 or described.get_text_config() is not described:
        return None
    stored = getattr(described, "dtype", None)
    return stored if stored in _NARROW and getattr(described, "quantization_config", None) is None else None


def is_mapped(model: Any, name_or_path: str, dtype: torch.dtype, revision: str | None = None) -> bool:
    """Whether a model that was loaded in this dtype can be cast later, with the same result as on loading.

    Not if a file has other types, which were cast already; nor if the model has weights or buffers of its own choice.

    Args:
        model: as it was loaded.
        name_or_path: a folder, or the name of a model on the Hub.
        dtype: from `mappable_dtype`.
        revision: of the repository on the Hub.
    """
    if any(parameter.dtype != dtype for parameter in model.parameters()):
        return False
    if any(buffer.dtype == dtype for buffer in model.buffers()):
        return False  # in float32, it might have other values
    files = weight_files(name_or_path, revision)
    return bool(files) and all(_NARROW[dtype] == found for path in files for found in _float_types(path))


def widen_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights of fewer bytes to this dtype, in place; weights that are tied stay tied."""
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize < dtype.itemsize:
            parameter.data = parameter.data.to(dtype)


def _float_types(path: Path) -> set[str]:
    with safe_open(path, "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()} & {*_FLOATS}  # noqa: SIM118


def weight_files(name_or_path: str, revision: str | None = None) -> list[Path]:
    """The safetensors files that were loaded; empty if there were others."""
    single, index = (_find(name_or_path, name, revision) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    if single is not None or index is None:
        return [single] if single is not None else []
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [_find(name_or_path, name, revision) for name in names]
    return [path for path in found if path is not None] if None not in found else []


def _find(name_or_path: str, name: str, revision: str | None) -> Path | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path, name)
        return path if path.is_file() else None
    cached = try_to_load_from_cache(name_or_path, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
