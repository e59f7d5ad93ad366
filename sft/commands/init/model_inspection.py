"""Inspects a model by its config.json; parameters are counted on a model without memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM

from sft.commands.init.findings import ModelInfo
from sft.commands.paths import looks_like_a_path
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import ModelError, one_line
from sft.common.hub_names import full_name_hint
from sft.common.outside_files import outside_file
from sft.common.run_records import ModelFootprint
from sft.modeling.architecture import auto_class, num_positions, why_not_causal_lm
from sft.modeling.causality import check_config_is_causal
from sft.modeling.footprint import footprint
from sft.modeling.model_files import check_settings_files

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("sft.model")


def inspect_model(name: str) -> ModelInfo:
    """Return what is known about a model without its weights.

    If the name is not a local folder, the Hub's cache is searched, then the Hub. If neither has the model, the result
    contains only its name and the problem.

    Raises:
        ModelError: if the name is a local path without a model, or the model is no causal language model.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(f"{name} is a file. Enter the folder that contains it, or a name on the Hugging Face Hub.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{name} contains no model (no config.json). Enter another folder, or a name on the Hub.")
    if not folder.exists() and (looks_like_a_path(name) or not name.strip()):
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ModelError(f"no folder {name!r}.{did_you_mean(folder.name, siblings)}")
    if folder.is_dir():
        check_settings_files(folder)
    name_or_path = str(folder) if folder.is_dir() else name
    config, problem = _load_config(name_or_path)
    if config is None:
        return ModelInfo(name=name, problem=problem)
    other = why_not_causal_lm(config)
    if other is not None:
        raise ModelError(f"{name} {other}")
    info = ModelInfo(
        name=name,
        class_name=next(iter(config.architectures or ()), ""),
        context_length=num_positions(config),
        tokenizer_file=_find_tokenizer_file(name_or_path),
    )
    with _quiet_transformers():
        check_config_is_causal(config)
    try:
        return replace(info, footprint=_footprint_of(config))
    except ModelError as error:
        # Unknown to transformers, needs remote code, or the config is not that of a language model.
        return replace(info, problem=one_line(error, 160))


def _load_config(name_or_path: str) -> tuple["PretrainedConfig | None", str]:
    """Load config.json from a folder, the Hub's cache or the Hub. Returns None and the problem if it cannot be read."""
    is_local = Path(name_or_path).is_dir()
    problem = ""
    for local_files_only in (False,) if is_local else (True, False):
        if not local_files_only and not is_local:
            logger.info(
                "%s is neither a folder nor in the Hugging Face cache (HF_HOME): looking on the Hub.", name_or_path
            )
        try:
            with outside_file("its config.json cannot be used", ModelError):
                return AutoConfig.from_pretrained(name_or_path, local_files_only=local_files_only), ""
        except ModelError as error:
            problem = one_line(error, 160)
    return None, problem if is_local else _not_found(name_or_path)


def _not_found(name: str) -> str:
    hint = full_name_hint(name, "model").rstrip(".")
    return f"it is not in the Hub's cache, and was not found on the Hub{'.' if hint else ''}{hint}"


def _footprint_of(config: "PretrainedConfig") -> ModelFootprint:
    with _quiet_transformers():
        with outside_file("its size is unknown", ModelError), torch.device("meta"):
            model = (auto_class(config) or AutoModelForCausalLM).from_config(config, dtype=torch.float32)
        return footprint(model)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    transformers_logger = logging.getLogger("transformers")
    level, transformers_logger.level = transformers_logger.level, logging.ERROR
    try:
        yield
    finally:
        transformers_logger.level = level


def _find_tokenizer_file(name_or_path: str) -> str | None:
    if Path(name_or_path).is_dir():
        path = Path(name_or_path, "tokenizer.json")
        return str(path) if path.is_file() else None
    cached = try_to_load_from_cache(name_or_path, "tokenizer.json")
    return cached if isinstance(cached, str) else None
