"""The records beside a saved model: `run_summary.json` and `resolved_config.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sft.common.errors import ConfigError
from sft.common.files import special_file
from sft.configuration.yaml_bounds import load_bounded


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The records of a run; empty mappings without files."""

    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Key -> effective value, as in `resolved_config.yaml`."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """As in `run_summary.json`: see `sft.reporting.summary.build_summary`."""


def read_run_record(folder: str | Path) -> RunRecord:
    """Read the records in a folder.

    Raises:
        ConfigError: if one of them exists but cannot be read.
    """
    path = Path(folder)
    settings = _mapping_in(path / "resolved_config.yaml", load_bounded)
    summary = _mapping_in(path / "run_summary.json", json.loads)
    return RunRecord(folder=path if settings or summary else None, settings=settings, summary=summary)


def _mapping_in(path: Path, read: Any) -> Mapping[str, Any]:
    special = special_file(path)
    if special is not None:
        raise ConfigError(special)
    if not path.is_file():
        return {}
    try:
        found = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}. Repair or remove it.") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a mapping, found {type(found).__name__}. Repair or remove it.")
    return found
