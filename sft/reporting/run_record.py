"""What a run left beside its model, read back: `run_summary.json` and `resolved_config.yaml`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sft.common.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The records of a run; empty mappings where there are none."""

    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Key -> value in force, as in `resolved_config.yaml`."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """As in `run_summary.json`: see `sft.reporting.summary.build_summary`."""


def read_run_record(folder: str | Path) -> RunRecord:
    """The records in a folder.

    Raises:
        ConfigError: if one of them is there but cannot be read.
    """
    place = Path(folder)
    settings = _mapping_in(place / "resolved_config.yaml", yaml.safe_load)
    summary = _mapping_in(place / "run_summary.json", json.loads)
    return RunRecord(folder=place if settings or summary else None, settings=settings, summary=summary)


def _mapping_in(path: Path, read: Any) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: cannot be read: {' '.join(str(error).split())}. Mend it, or move it away."
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected keys with values, found something else. Mend it, or move it away.")
    return found
