"""Configurations from text, as a user gives them. The current folder holds `train.jsonl` and takes the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from config_manager import load_config
from sft.common.errors import ConfigError
from sft.configuration.keys import keys_of
from sft.configuration.schema import FLAT_SECTIONS, SFTConfig
from sft.configuration.values import config_to_yaml
from tests.support.schema_check import check_schema_agrees

MODEL = "model_name_or_path: tiny\n"
BASE = MODEL + "train_file: train.jsonl\n"
VALIDATED = BASE + "validation_split: 0.1\n"


def load(text: str = "", *arguments: str, base: str = BASE) -> SFTConfig:
    """The configuration of `my.yaml` with this text. The schema for editors must come to the same result."""
    Path("my.yaml").write_text(base + text, encoding="utf-8")
    problems: list[str] = []
    try:
        return load_config("my.yaml", arguments)
    except ConfigError as error:
        problems = list(error.problems)
        raise
    finally:
        if not arguments:
            check_schema_agrees(base + text, problems)


def problems_of(text: str = "", *arguments: str, base: str = BASE) -> list[str]:
    """The problems for which `load` fails."""
    with pytest.raises(ConfigError) as caught:
        load(text, *arguments, base=base)
    return list(caught.value.problems)


def value_of(config: SFTConfig, key: str) -> Any:
    """The value of a top-level key, whichever section it belongs to."""
    for section in FLAT_SECTIONS:
        if key in keys_of(type(getattr(config, section))):
            return getattr(getattr(config, section), key)
    return config.training.extra_training_arguments[key]


def reloaded(config: SFTConfig) -> SFTConfig:
    """The configuration, saved as YAML and read again."""
    Path("resolved.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return load_config("resolved.yaml")
