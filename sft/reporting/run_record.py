"""The records beside a saved model: `run_summary.json` and `resolved_config.yaml`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.common.errors import ConfigError
from sft.common.outside_files import read_json
from sft.common.shapes import NUMBER, Each
from sft.configuration.yaml_bounds import load_bounded

_SCORES = dict.fromkeys(("loss", "loss_unweighted", "perplexity", "token_accuracy", "sequence_accuracy"), NUMBER)
_EVALUATION = {**_SCORES, "sets": Each({**_SCORES, "rows": int})}
_SOURCE = {"name!": str, "format_name!": str, "rows_read!": int, "rows_used!": int, "rows_dropped": Each(int)}
_SPLIT = {"rows_used": int, "tokens": int, "supervised_tokens": int, "sources": [_SOURCE]}
_SUMMARY = {
    "status": str,
    "device": str,
    "bad_steps": int,
    "versions": Each(str),
    "batch_plan": {"world_size": int, "global_batch_size": int},
    "train": {
        **dict.fromkeys(("steps", "peak_memory_bytes"), int),
        **dict.fromkeys(("seconds", "examples_per_second", "tokens_per_second"), NUMBER),
    },
    **{f"{kind}_{when}": _EVALUATION for kind in ("eval", "test", "forgetting") for when in ("before", "after")},
    "data": {"train": _SPLIT, "validation": _SPLIT, "digests": {"train": str, "validation": str}},
    "samples": [{"prompt": str, "before": str, "after": str}],
}
"""What is read of `run_summary.json`; it has more."""
_SETTINGS = {
    "model_name_or_path": str,
    "dataset_name": str,
    "datasets": list,
    "lora_config": dict,
    "chat_template_kwargs": dict,
    "system_prompt": str,
    "quantization_config": {
        **dict.fromkeys(("load_in_4bit", "load_in_8bit", "bnb_4bit_use_double_quant"), bool),
        **dict.fromkeys(("bnb_4bit_quant_type", "bnb_4bit_compute_dtype"), str),
    },
}
"""What is read of `resolved_config.yaml`; it has more."""


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
    settings = _mapping_in(path / "resolved_config.yaml", load_bounded, _SETTINGS)
    summary = _mapping_in(path / "run_summary.json", json.loads, _SUMMARY)
    return RunRecord(folder=path if settings or summary else None, settings=settings, summary=summary)


def _mapping_in(path: Path, parse: Callable[[str], Any], shape: Any) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_json(path, ConfigError, shape, parse=parse)
    except ConfigError as error:
        raise ConfigError(f"{error}. Repair or remove it.") from error
