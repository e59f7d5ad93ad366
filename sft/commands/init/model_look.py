"""A model by its config alone: its size is counted on a model that has no memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.commands.init.facts import ModelFacts
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import ModelError, one_line
from sft.modeling.footprint import footprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger("sft.model")


def looks_like_a_path(name: str) -> bool:
    """Whether a name can only be a place on disk."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/")


def look_at_model(name: str) -> ModelFacts:
    """What can be known of a model before its weights are loaded.

    A name that is no folder here is looked up in the Hub's cache, then on the Hub; where neither has it, the facts say
    so and hold nothing else.

    Raises:
        ModelError: if it is a place on disk that is no model's folder.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(f"{name} is a file. Give the folder that holds it, or a name on the Hugging Face Hub.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"no config.json in {name}, so it is no model's folder. Give one, or a name on the Hub.")
    if not folder.exists() and (looks_like_a_path(name) or not name.strip()):
        siblings = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise ModelError(f"there is no folder {name!r}.{did_you_mean(folder.name, siblings)}")
    place = str(folder) if folder.is_dir() else name
    config, problem = _config_of(place)
    if config is None:
        return ModelFacts(name=name, problem=problem)
    text_config = config.get_text_config()
    facts = ModelFacts(
        name=name,
        class_name=next(iter(config.architectures or ()), ""),
        positions=getattr(text_config, "max_position_embeddings", None),
        tokenizer_file=_tokenizer_file(place),
    )
    try:
        return replace(facts, footprint=_footprint_of(config))
    except (ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
        # An architecture that transformers does not know, code that would have to be trusted, a config of another kind.
        return replace(facts, problem=f"its size is not known: {one_line(error, 160)}")


def _config_of(place: str) -> tuple["PretrainedConfig | None", str]:
    from transformers import AutoConfig

    problem = ""
    for offline in (True, False):
        if offline and Path(place).is_dir():
            continue
        if not offline and not Path(place).is_dir():
            logger.info("%s is neither here nor in the Hugging Face cache (HF_HOME): asking the Hub.", place)
        try:
            return AutoConfig.from_pretrained(place, local_files_only=offline), ""
        except (OSError, ValueError, KeyError) as error:
            problem = one_line(error, 160)
    if not Path(place).is_dir():
        problem = "neither in the Hub's cache here nor read from the Hub"
    return None, problem


def _footprint_of(config: "PretrainedConfig") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    quiet = logging.getLogger("transformers")
    level, quiet.level = quiet.level, logging.ERROR
    try:
        with torch.device("meta"):
            return footprint(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    finally:
        quiet.level = level


def _tokenizer_file(place: str) -> str | None:
    if Path(place).is_dir():
        path = Path(place, "tokenizer.json")
        return str(path) if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(place, "tokenizer.json")
    return cached if isinstance(cached, str) else None
