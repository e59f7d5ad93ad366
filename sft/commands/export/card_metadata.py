"""The metadata of a model card (YAML front matter), as the Hugging Face Hub reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sft.common.text import printable
from sft.reporting.run_record import RunRecord

SCORES = {
    "loss": "validation loss",
    "perplexity": "perplexity",
    "token_accuracy": "token accuracy",
    "sequence_accuracy": "sequence accuracy",
}
"""Key in `run_summary.json` -> name."""
_METRIC_TYPES = {
    "loss": "loss",
    "perplexity": "perplexity",
    "token_accuracy": "accuracy",
    "sequence_accuracy": "exact_match",
}
"""Key in `run_summary.json` -> metric of the Hub."""


def card_metadata(name: str, base: str | None, record: RunRecord, *, has_scores: bool) -> str:
    """The YAML without its `---` lines and the license, which only the owner knows.

    Args:
        name: of the model.
        base: base model; it is named if it is one of the Hub.
        record: of the run.
        has_scores: whether the evaluation at the end of the run is that of this model.
    """
    scores = list(_eval_results(record)) if has_scores else []
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["sft"],
        base_model=base if base is not None and is_hub_name(base) else None,
        datasets=hub_datasets(record.settings) or None,
        model_name=printable(name) if scores else None,
        eval_results=scores or None,
    )
    return data.to_yaml()


def public_name(path_or_name: str) -> str:
    """A model's or dataset's name for publication: of a local path only the last part."""
    return path_or_name if is_hub_name(path_or_name) else Path(path_or_name).name


def is_hub_name(name: str) -> bool:
    """Whether a name can be that of a repository on the Hub, and is no local path."""
    if Path(name).exists() or name.startswith(("/", ".", "~")):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_datasets(settings: Mapping[str, Any]) -> list[str]:
    """Names of the training data that is loaded by name from the Hub, each once."""
    names = [settings.get("dataset_name")]
    names += [entry.get("name") for entry in settings.get("datasets") or [] if isinstance(entry, Mapping)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and is_hub_name(name)))


def _eval_results(record: RunRecord) -> Iterator[EvalResult]:
    scores = record.summary.get("eval_after") or {}
    data = record.summary.get("data") or {}
    split = data.get("validation") or data.get("train") or {}
    source: Mapping[str, Any] = next(iter(split.get("sources") or []), {})
    dataset = str(source.get("name") or "validation data")
    for key, name in SCORES.items():
        value = scores.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            yield EvalResult(
                task_type="text-generation",
                dataset_type=dataset if dataset in hub_datasets(record.settings) else "local",
                dataset_name=printable(public_name(dataset)),
                dataset_split="validation",
                metric_type=_METRIC_TYPES[key],
                metric_name=name,
                metric_value=value,
            )
