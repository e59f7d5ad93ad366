"""The resolved configuration as values, as YAML, as a digest."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import yaml

from sft.configuration.keys import keys_of
from sft.configuration.printing import yaml_with_origins
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    SFTConfig,
)

SECRETS = {"hub_token"}


def config_to_yaml(config: SFTConfig) -> str:
    """The configuration as YAML, every key with its value in force; `load_config` reads it back to the same.

    A secret is left out: the file is made to be shown.
    """
    values = config_values(config)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def config_values(config: SFTConfig) -> dict[str, Any]:
    """Every key with its value in force, as in `config_to_yaml`: without a secret."""
    values: dict[str, Any] = {}
    for section_name in FLAT_SECTIONS:
        section = getattr(config, section_name)
        values.update(_plain(section))
    extra = config.training.extra_training_arguments
    values.update({name: value for name, value in extra.items() if name not in SECRETS})
    for yaml_key, (section_name, _) in NESTED_SECTIONS.items():
        values[yaml_key] = _plain(getattr(config, section_name))
    return values


def _plain(value: Any) -> Any:
    """A section or record as a mapping of its keys, all the way in; lists and mappings copied, so none is shared."""
    if dataclasses.is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in keys_of(type(value))}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, dict) else value


def config_sha256(config: SFTConfig) -> str:
    """Digest of the resolved configuration's YAML text: two runs with the same digest had the same settings."""
    return hashlib.sha256(config_to_yaml(config).encode()).hexdigest()


def config_with_origins(config: SFTConfig) -> str:
    """The configuration as YAML, every key with its value in force and, as a comment, where that comes from."""
    return yaml_with_origins(config_values(config), config)
