"""Checks of evaluation sets, of the metric that chooses, and of early stopping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sft.common.did_you_mean import did_you_mean
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.evaluation_sets import SETS_OF_FILES, set_name_problem, validation_set_names
from sft.configuration.schema import DataConfig, SFTConfig

EVALUATION_METRICS = ("loss", "loss_unweighted", "perplexity", "token_accuracy", "sequence_accuracy")


def metric_names(data: DataConfig) -> list[str]:
    """What `metric_for_best_model` may name, without `eval_`: means over all sets, then those of each named set."""
    sets = validation_set_names(data)
    return [*EVALUATION_METRICS, *(f"{name}_{metric}" for name in sets for metric in EVALUATION_METRICS)]


def check_evaluation_sets(config: SFTConfig) -> Iterator[Contradiction]:
    """Check names of sets and of the metric, and that early stopping has something to go by."""
    data, training = config.data, config.training
    for key in SETS_OF_FILES:
        value = getattr(data, key)
        if isinstance(value, Mapping):
            if not value:
                yield Contradiction(key, "is an empty mapping; give a file, or names and files.")
            problems = (set_name_problem(name) for name in value)
            yield from (Contradiction(key, problem) for problem in problems if problem is not None)
    metric, allowed = training.passed_through.metric_for_best_model, metric_names(data)
    if metric is not None and str(metric).removeprefix("eval_") not in allowed:
        hint = did_you_mean(str(metric).removeprefix("eval_"), allowed)
        yield Contradiction("metric_for_best_model", f"unknown value {metric!r}; choose {' | '.join(allowed)}.{hint}")
    if training.early_stopping_threshold and training.early_stopping_patience is None:
        yield Contradiction("early_stopping_threshold", "requires early_stopping_patience.")
