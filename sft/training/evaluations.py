"""Evaluations of a run as records: of the validation data, of the sets at both ends, and scores of answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sized
from typing import Any

from sft.common.run_records import SCORES, EvaluationResult
from sft.training.run_identity import BeforeTraining
from sft.training.scored_answers import ScoredAnswers

logger = logging.getLogger("sft.train")


def evaluation_result(
    metrics: Mapping[str, float], rows: Mapping[str, Sized], *, prefix: str = "eval", kind: str = "validation"
) -> EvaluationResult:
    """The metrics of an evaluation as a record.

    Args:
        metrics: with the names that they have in the log.
        rows: of each set, by name; that of an only set without a name is `kind`.
        prefix: of the names.
        kind: of the sets.
    """

    def means(stem: str) -> dict[str, Any]:
        return {name: metrics[f"{stem}_{name}"] for name in SCORES if f"{stem}_{name}" in metrics}

    sets = {
        name: EvaluationResult(**means(prefix if name == kind else f"{prefix}_{name}"), rows=len(of_set))
        for name, of_set in rows.items()
    }
    return EvaluationResult(**means(prefix), sets=sets)


def evaluate_validation(trainer: Any) -> EvaluationResult | None:
    """Evaluates on the validation data; None if there is none."""
    return None if trainer.eval_dataset is None else evaluation_result(trainer.evaluate(), trainer.validation_sets)


def last_evaluation(trainer: Any) -> EvaluationResult | None:
    """The evaluation of the final weights: the last one if it was of these weights, else a new one."""
    events = [event for event in trainer.state.log_history if "eval_loss" in event]
    if events and events[-1]["step"] == trainer.state.global_step and not trainer.has_best_weights:
        return evaluation_result(events[-1], trainer.validation_sets)
    return evaluate_validation(trainer)


def evaluate_at_ends(trainer: Any, when: str, known: Mapping[str, EvaluationResult]) -> dict[str, EvaluationResult]:
    """The evaluations of the test sets and of the forgetting check, `before` or `after` training.

    Args:
        trainer: the trainer.
        when: `before` or `after`.
        known: what the resumed run found before its first step.
    """
    data = trainer.setup.data
    found = {}
    for kind, sets in (("test", data.test_sets), ("forgetting", data.forgetting_sets)):
        name = f"{kind}_{when}"
        if sets:
            found[name] = known.get(name) or evaluation_result(
                trainer.measure(kind, sets), sets, prefix=kind, kind=kind
            )
    return found


def with_answers(
    scored: ScoredAnswers | None,
    evaluation: EvaluationResult | None,
    at_ends: dict[str, EvaluationResult],
    when: str,
    *,
    step: int,
    is_new: bool = False,
) -> tuple[EvaluationResult | None, dict[str, EvaluationResult]]:
    """The evaluations with the scores of generated answers, which are measured now where they are missing.

    Args:
        scored: measures them; None leaves the evaluations as they are.
        evaluation: of the validation data.
        at_ends: as of `evaluate_at_ends`.
        when: `before` or `after`.
        step: of the weights that the model has now.
        is_new: see `ScoredAnswers.measure`.
    """
    if scored is None:
        return evaluation, at_ends
    if evaluation is not None and not evaluation.answers:
        evaluation = dataclasses.replace(evaluation, answers=scored.measure("validation", step=step, is_new=is_new))
    name = f"test_{when}"
    if name in at_ends and not at_ends[name].answers:
        tested = dataclasses.replace(at_ends[name], answers=scored.measure("test", step=step))
        at_ends = {**at_ends, name: tested}
    return evaluation, at_ends


def evaluate_before(trainer: Any, scored: ScoredAnswers | None, known: BeforeTraining) -> BeforeTraining:
    """What is measured before the first step, as far as a resumed run does not know it; kept by checkpoints.

    Args:
        trainer: the trainer.
        scored: scores answers; None does not.
        known: of the resumed run.
    """
    if trainer.is_deepspeed_enabled:
        logger.info(
            "DeepSpeed takes the model when training begins, so there is no evaluation before training and there are "
            "no sample answers. DeepSpeed also sums the gradients, so steps with NaN or inf are not skipped."
        )
        return dataclasses.replace(trainer.before, evaluation=None, at_ends={})
    before = known.evaluation or evaluate_validation(trainer)
    at_ends = evaluate_at_ends(trainer, "before", known.at_ends)
    before, at_ends = with_answers(scored, before, at_ends, "before", step=0)
    return dataclasses.replace(trainer.before, evaluation=before, at_ends=at_ends)


def evaluate_after(
    trainer: Any, scored: ScoredAnswers | None, steps: int
) -> tuple[EvaluationResult | None, dict[str, EvaluationResult]]:
    """The evaluation of the final weights, and those of the sets at the ends.

    Args:
        trainer: after training.
        scored: scores answers; None does not.
        steps: number of the last step.
    """
    found, at_ends = last_evaluation(trainer), evaluate_at_ends(trainer, "after", {})
    if trainer.is_deepspeed_enabled:
        return found, at_ends
    return with_answers(scored, found, at_ends, "after", step=steps, is_new=trainer.has_best_weights)
