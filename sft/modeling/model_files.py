"""Which file of a model's folder is at fault: libraries name the value that they did not expect, seldom the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig

from sft.common.errors import ModelError
from sft.common.outside_files import check_shape, outside_file, read_json
from sft.common.shapes import NUMBER, Each

_SETTINGS: dict[str, dict[str, Any]] = {
    "config.json": {
        "architectures": [str],
        "model_type": str,
        "auto_map": dict,
        "quantization_config": {"quant_method": str},
        "layer_types": [str],
        **dict.fromkeys(("max_position_embeddings", "sliding_window", "attention_chunk_size"), (bool, int)),
    },
    "generation_config.json": {},
    "tokenizer_config.json": {"model_max_length": NUMBER, "model_input_names": [str], "added_tokens_decoder": dict},
    "special_tokens_map.json": {},
    "added_tokens.json": {},
    "adapter_config.json": {"alora_invocation_tokens": [int]},
}
"""File -> the shape of what is read of it here, or fails late: libraries check the rest."""
_LARGEST = {"num_hidden_layers": 10_000, "n_layer": 10_000, "num_labels": 1_000_000}
"""Counts that libraries build objects for, one by one: a wrong one takes hours, or all memory."""
_INDEX_SHAPE = {"metadata!": dict, "weight_map!": Each(str)}
_REGULAR = ("model.safetensors", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja")


def check_settings_files(folder: Path) -> None:
    """Check that each file of settings in a model's folder is a JSON object, and that no link points to nothing.

    Some libraries pass over a file that is neither.

    Raises:
        ModelError: naming the file.
    """
    for name, shape in _SETTINGS.items():
        if os.path.lexists(folder / name):
            _check_counts(folder / name, read_json(folder / name, ModelError, shape))
    for name in _REGULAR:
        if (folder / name).is_dir():
            raise ModelError(f"{folder / name}: is a folder, where a file is expected.")
        if (folder / name).is_symlink() and not (folder / name).exists():
            raise ModelError(f"{folder / name}: is a link to nothing. Download the model again, completely.")


def _check_counts(path: Path, settings: Mapping[str, Any]) -> None:
    for name, most in _LARGEST.items():
        if isinstance(settings.get(name), int) and not 0 <= settings[name] <= most:
            raise ModelError(f"{path}: {name}: expected an integer from 0 to {most:,}, found {settings[name]}.")


def find_broken_file(folder: Path, what: str) -> str | None:
    """The file in a local folder that keeps a model from being loaded, and why; None if each can be read by itself.

    Args:
        folder: of the model; anything else has no files to look at.
        what: what could not be loaded: of a `tokenizer`, weights are not looked at, and the other way round.
    """
    for check in _checks(folder, what):
        try:
            check()
        except ModelError as error:
            return error.problems[0]
    return None


def _checks(folder: Path, what: str) -> Iterator[Callable[[], object]]:
    for index in sorted(folder.glob("*.index.json")):
        yield partial(_check_index, index)
    if (folder / "config.json").is_file():
        yield partial(_check_config, folder)
    if what == "tokenizer":
        for path in sorted([*folder.glob("*.jinja"), *folder.glob("additional_chat_templates/*")]):
            yield partial(_check_text, path)
        if (folder / "tokenizer.json").is_file():
            yield partial(_check_tokenizer, folder / "tokenizer.json")
        return
    if (folder / "generation_config.json").is_file():
        yield partial(_check_generation_config, folder)
    for path in sorted(folder.glob("*.safetensors")):
        yield partial(_check_weights, path)
    for path in sorted(folder.glob("*.bin")):
        yield partial(_check_pickled_weights, path)


def _check_index(path: Path) -> None:
    shards = read_json(path, ModelError, _INDEX_SHAPE)["weight_map"].values()
    missing = sorted({name for name in shards if not (path.parent / name).is_file()})
    if missing or not shards:
        what = f"names {missing[0]}, which is not in the folder" if missing else "names no weights"
        raise ModelError(f"{path}: {what}. Download the model again, completely.")


def _check_config(folder: Path) -> None:
    if read_json(folder / "config.json", ModelError).get("auto_map"):
        return  # only code that comes with the model can tell
    with outside_file(f"{folder / 'config.json'}: cannot be used", ModelError):
        AutoConfig.from_pretrained(folder, local_files_only=True)


def _check_generation_config(folder: Path) -> None:
    with outside_file(f"{folder / 'generation_config.json'}: cannot be used", ModelError):
        GenerationConfig.from_pretrained(folder, local_files_only=True)


def _check_text(path: Path) -> None:
    with outside_file(f"{path}: cannot be read", ModelError):
        path.read_bytes().decode("utf-8")


def _check_tokenizer(path: Path) -> None:
    with outside_file(f"{path}: cannot be read", ModelError):
        Tokenizer.from_file(str(path))


def _check_weights(path: Path) -> None:
    with outside_file(f"{path}: cannot be read", ModelError), safe_open(path, "pt") as file:
        file.keys()


def _check_pickled_weights(path: Path) -> None:
    with outside_file(f"{path}: cannot be read", ModelError):
        document = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    check_shape(document, ModelError, dict, str(path))
