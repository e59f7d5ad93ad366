"""The resolved configuration as plain values, as YAML, and as a digest."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import yaml

from sft.common.secrets import hide_addresses, looks_secret, without_secrets
from sft.common.text import visible
from sft.configuration.keys import keys_of
from sft.configuration.printing import yaml_with_origins
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    SFTConfig,
)


def config_to_yaml(config: SFTConfig) -> str:
    """The configuration as YAML with the effective value of every key, without secrets.

    `load_config` reads it back to an equal configuration.
    """
    values = config_values(config)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    if visible(text) != text:  # YAML's own escapes, which are read back
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    return text


def config_values(config: SFTConfig) -> dict[str, Any]:
    """Effective value of every key, without secrets."""
    values: dict[str, Any] = {}
    for section_name in FLAT_SECTIONS:
        section = getattr(config, section_name)
        values.update(_plain(section))
    extra = config.training.extra_training_arguments
    values.update({name: without_secrets(value) for name, value in extra.items() if not looks_secret(name)})
    for yaml_key, (section_name, _) in NESTED_SECTIONS.items():
        values[yaml_key] = _plain(getattr(config, section_name))
    return values


def _plain(value: Any) -> Any:
    """Convert sections and records to dicts, recursively; lists and mappings are copied."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in keys_of(type(value))}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return hide_addresses(value)
    return without_secrets(value) if isinstance(value, dict) else value


def config_sha256(config: SFTConfig) -> str:
    """SHA-256 of `config_to_yaml`: runs with the same digest have the same settings."""
    return hashlib.sha256(config_to_yaml(config).encode()).hexdigest()


def config_with_origins(config: SFTConfig) -> str:
    """`config_to_yaml` with the origin of each value as a comment."""
    return yaml_with_origins(config_values(config), config)
