"""Heads that predict several tokens (multi-token prediction): in published files, and not in transformers' model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from sft.common.text import counted
from sft.modeling.mapped_weights import weight_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OWN_NAME = re.compile(r"(^|\.)mtp(\.|_|$)")
_LAYER = re.compile(r"^(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")
"""A layer of the text model: some files number the further heads on after the last layer."""
_NUM_HEADS = re.compile(r"num_(nextn_predict|mtp)_layers")
"""Entries of config.json that say how many there are."""


def prediction_heads(name_or_path: str, config: "PretrainedConfig", revision: str | None = None) -> list[str]:
    """The names of such heads' tensors in the files of a model.

    Args:
        name_or_path: a folder, or the name of a model on the Hub.
        config: of the model.
        revision: of the repository on the Hub.
    """
    of_text = config.get_text_config()
    stated = [value for key, value in of_text.to_dict().items() if _NUM_HEADS.fullmatch(key) and type(value) is int]
    first = of_text.num_hidden_layers
    return sorted(_names(weight_files(name_or_path, revision), range(first, first + sum(stated))))


def left_out_line(name_or_path: str, names: Sequence[str]) -> str | None:
    """A line for the log about such heads, by their tensors' names; None if there are none.

    transformers leaves them out without a word, and training the model makes them unfit for it.
    """
    if not names:
        return None
    return (
        f"{name_or_path}: the heads that predict further tokens ({counted(len(names), 'tensor')}, for example "
        f"{names[0]}) are not in transformers' model: they are neither trained nor saved."
    )


def _names(files: Sequence[Path], further_layers: range) -> Iterator[str]:
    for path in files:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        for name in names:
            layer = _LAYER.match(name)
            if _OWN_NAME.search(name) or (layer is not None and int(layer.group(1)) in further_layers):
                yield name
