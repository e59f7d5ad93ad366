"""The records of runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.common.errors import ConfigError
from sft.common.json_lines import read_json_lines
from sft.reporting.metrics_log import METRICS_SHAPE
from sft.reporting.report.records import is_number
from sft.reporting.run_record import read_run_record


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedRun:
    """The records of a run. What an earlier version or a killed run did not record is empty."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Key, nested keys by their path -> value."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """`run_summary.json`."""
    events: Sequence[Mapping[str, Any]] = ()
    """`metrics.jsonl`."""
    dropped_lines: Sequence[str] = ()
    """A sentence for each line of it that cannot be read."""

    def find(self, *keys: str) -> Any:
        """Return a value of the summary by its keys; None if there is no such key."""
        value: Any = self.summary
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        return [event for event in self.events if is_number(event.get("eval_loss"))]


def read_run(folder: str | Path, name: str | None = None) -> ComparedRun:
    """Read the records of a run.

    Args:
        folder: its `output_dir`.
        name: name of the run; the default is its folder.

    Raises:
        ConfigError: if the folder contains no run, or its records cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigError(f"command line: no folder '{folder}'. Name the output_dir of a run.")
    record, metrics = read_run_record(path), path / "metrics.jsonl"
    if not record.summary and not metrics.is_file():
        raise ConfigError(
            f"command line: '{folder}' contains no run (neither run_summary.json nor metrics.jsonl). Name the "
            "output_dir of a run."
        )
    events, dropped = read_json_lines(metrics, METRICS_SHAPE) if metrics.is_file() else ([], [])
    return ComparedRun(
        name=name or str(folder),
        settings=_flatten(record.settings),
        summary=record.summary,
        events=events,
        dropped_lines=dropped,
    )


def short_names(folders: Sequence[str]) -> list[str]:
    """Name each folder by its last component, or by as many as are needed to tell two folders apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    max_length = max(map(len, parts))

    def name(own: tuple[str, ...]) -> str:
        tails = ((own[-length:], [each[-length:] for each in parts]) for length in range(1, max_length + 1))
        return str(Path(*next((tail for tail, all_tails in tails if all_tails.count(tail) == 1), own)))

    return [name(own) for own in parts]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Replace nested keys by their path: `lora_config.r`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
