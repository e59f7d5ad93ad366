"""Checks of evaluation sets, of the metric that chooses, and of early stopping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sft.common.answer_scores import SCORES
from sft.common.did_you_mean import did_you_mean
from sft.common.function_files import function_problem
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.checks.schedule import may_have_validation
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
    yield from _check_answers(config)
    if training.early_stopping_threshold and training.early_stopping_patience is None:
        yield Contradiction("early_stopping_threshold", "requires early_stopping_patience.")


def _check_answers(config: SFTConfig) -> Iterator[Contradiction]:
    training, data = config.training, config.data
    for name in training.answer_scores:
        if name.partition(":")[0].endswith(".py"):
            problem = function_problem(name)
            if problem is not None:
                yield Contradiction("answer_scores", problem)
        elif name not in SCORES:
            hint = did_you_mean(name, SCORES)
            yield Contradiction("answer_scores", f"unknown score {name!r}; choose {' | '.join(SCORES)}.{hint}")
    if bool(training.answer_scores) != bool(data.answer_rows):
        key, other = ("answer_scores", "answer_rows") if training.answer_scores else ("answer_rows", "answer_scores")
        yield Contradiction(key, f"requires {other}.")
    elif training.answer_scores and not (may_have_validation(data) or data.test_file):
        yield Contradiction("answer_scores", "requires validation or test data.")
    if training.answers_at_evaluations and not training.answer_scores:
        yield Contradiction("answers_at_evaluations", "requires answer_scores.")
