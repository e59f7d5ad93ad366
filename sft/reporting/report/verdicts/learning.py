"""What the losses show: whether the model learned, overfits, and was trained long enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sft.common.data_records import FEW_VALIDATION_ROWS
from sft.common.text import change_text, counted
from sft.reporting.report.records import COMPLETED, ReportRecords, best_evaluation, is_number
from sft.reporting.report.verdicts.trend import (
    FALLING,
    FEWEST,
    FLAT,
    MOST_SIGMAS,
    NOISY,
    RISING,
    TOO_FEW,
    WORTHWHILE_NATS,
    WORTHWHILE_SHARE,
    Trend,
    find_trend,
    fluctuation,
)
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN, Verdict

CHANGE_SHARE = 0.02
"""A relative change of the validation loss below this counts as no change."""
RISE_SHARE, RISE_NATS = 0.01, 0.01
"""The validation loss has risen from its best if it rose by both: relative, and in nats per token."""
CLEAR_RISE_SHARE = 0.05
"""A relative rise by this is clear from a single evaluation."""
DIVERGED_SHARE, DIVERGED_NATS = 0.2, 0.1
"""The training loss has diverged if it ends above its start by both."""
TRAINING_FALL = 0.05
"""Without validation, a relative fall of the training loss by this counts as having learned the training rows."""
WINDOW = 5
"""Logged training losses that are averaged, since single ones fluctuate."""
FEWEST_LOSSES = 4
"""Logged training losses from which their fluctuation can be told."""


_ROWS_RULE = f"Fewer than {FEW_VALIDATION_ROWS} validation rows decide nothing."


def learning_verdict(records: ReportRecords) -> Verdict:
    """Whether the validation loss fell, or without validation, the training loss."""
    question = "Did it learn?"
    diverged = _divergence(question, records)
    if diverged is not None:
        return diverged
    before, after = _losses_before_and_after(records)
    if before is None or after is None:
        return _learned_by_training_loss(question, records)
    change = (after - before) / before if before else 0.0
    few = _too_few_rows(records)
    if few is not None:
        state, sentence = UNKNOWN, few
    elif abs(change) < CHANGE_SHARE or abs(after - before) < RISE_NATS:
        state, sentence = WARN, "No. The validation loss is about the same as before training."
    elif change < 0:
        state, sentence = GOOD, "Yes. The validation loss fell."
    else:
        state, sentence = BAD, "No. The validation loss is higher than before training."
    return Verdict(
        question=question,
        state=state,
        sentence=sentence,
        figures=f"Validation loss {before:.4f} before, {after:.4f} {_when(records)} ({change_text(change)}).",
        rule=f"It learned if the validation loss fell by {CHANGE_SHARE:.0%} and {RISE_NATS} nats per token or more "
        f"from before training to the last evaluation, and got worse if it rose by as much. {_ROWS_RULE}",
    )


def _too_few_rows(records: ReportRecords) -> str | None:
    """Why no verdict follows from the validation loss: too few rows; None if there are enough."""
    validation = records.data.validation
    if validation is None or not validation.is_too_small_to_judge:
        return None
    return f"Not known: the validation data has only {counted(validation.rows_used, 'row')}, too few to judge by."


def evaluations_while_training(records: ReportRecords) -> list[Mapping[str, Any]]:
    """The evaluations with a finite loss, one for each step, without that of the best weights that were loaded at the
    end: these are not the weights of the last step."""
    found: dict[int, Mapping[str, Any]] = {}
    for event in records.evaluations:
        if is_number(event["eval_loss"]):
            found.setdefault(event["step"], event)
    evaluations = list(found.values())
    best = best_evaluation(evaluations[:-1])
    loads_best = records.settings.get("load_best_model_at_end") and records.result is not None
    # The same weights on the same rows; sums may be rounded differently.
    if loads_best and best is not None and math.isclose(evaluations[-1]["eval_loss"], best["eval_loss"], rel_tol=1e-5):
        del evaluations[-1]
    return evaluations


def _losses_before_and_after(records: ReportRecords) -> tuple[float | None, float | None]:
    """Validation losses: before the first step, and of the current model."""
    evaluations = [event for event in records.evaluations if is_number(event["eval_loss"])]
    first = evaluations[0]["eval_loss"] if evaluations and evaluations[0]["step"] == 0 else None
    later = [event["eval_loss"] for event in evaluations if event["step"] > 0]
    last = later[-1] if later else None
    if records.result is not None:
        before, after = records.result.eval_before, records.result.eval_after
        first = before.loss if before is not None and is_number(before.loss) else first
        last = after.loss if after is not None and is_number(after.loss) else last
    return first, last


def _when(records: ReportRecords) -> str:
    """When the last validation loss was measured: after training, or at a step."""
    if records.result is not None and records.result.eval_after is not None:
        return "after"
    return f"at step {records.evaluations[-1]['step']:,}"


def _learned_by_training_loss(question: str, records: ReportRecords) -> Verdict:
    losses = [loss for _, loss in records.training_losses if is_number(loss)]
    rule = (
        "Without evaluations before and after training, only the training loss is compared: mean of the first "
        f"{WINDOW} logged losses against the last {WINDOW}; a fall of {TRAINING_FALL:.0%} or more counts."
    )
    no_validation = records.data.validation is None
    why = "there is no validation data" if no_validation else "the model has not been evaluated after training yet"
    if len(losses) < FEWEST_LOSSES:
        sentence = f"Not known: {why}, and too few losses were logged."
        return Verdict(question=question, state=UNKNOWN, sentence=sentence, figures="", rule=rule)
    width = min(WINDOW, len(losses) // 2)
    first, last = _mean(losses[:width]), _mean(losses[-width:])
    change = (last - first) / first if first else 0.0
    noise = _fluctuation_of_means(losses, width)
    figures = f"Training loss {first:.4f} at the start, {last:.4f} at the end ({change_text(change)})."
    if abs(last - first) <= noise:
        state = UNKNOWN
        sentence = f"Not known: {why}, and the training loss fluctuates as much as it changed."
        figures = f"{figures.removesuffix('.')}; means of {width} fluctuate by {noise:.4f}."
    elif change <= -TRAINING_FALL:
        state, sentence = UNKNOWN, f"The training loss fell. Whether the model generalizes is not known: {why}."
    else:
        what = f"fell by less than {TRAINING_FALL:.0%}" if change < 0 else "did not fall"
        state, sentence = WARN, f"Hardly: the training loss {what}. Generalization is not known: {why}."
    if no_validation:
        sentence += " Set validation_file or validation_split."
    return Verdict(question=question, state=state, sentence=sentence, figures=figures, rule=rule)


def _fluctuation_of_means(losses: Sequence[float], width: int) -> float:
    """How far apart two means of `width` losses may be by the losses' fluctuation from one to the next alone."""
    steps = sorted(abs(after - before) for before, after in pairwise(losses))
    sigma = statistics.median(steps) / math.sqrt(2) / 0.6745  # 0.6745 is the median of |normal|
    return MOST_SIGMAS * sigma * math.sqrt(2 / width)


def _divergence(question: str, records: ReportRecords) -> Verdict | None:
    """The verdict on a run with a loss that is NaN or inf, or that ends far above its start; else None."""
    losses = records.training_losses
    rule = (
        f"It diverged if a logged loss is NaN or inf, or if the mean of the last {WINDOW} training losses is "
        f"{DIVERGED_SHARE:.0%} and {DIVERGED_NATS} nats above the mean of the first {WINDOW}, unless the validation "
        "loss fell."
    )
    step = next((step for step, loss in losses if not is_number(loss)), None)
    if step is None:
        step = next((event["step"] for event in records.evaluations if not is_number(event["eval_loss"])), None)
    if step is not None:
        sentence = "No. It diverged: the loss is NaN or inf. Lower learning_rate, or set bf16: true."
        return Verdict(
            question=question, state=BAD, sentence=sentence, figures=f"First logged at step {step:,}.", rule=rule
        )
    values = [loss for _, loss in losses if is_number(loss)]
    if len(values) < 2 * WINDOW:
        return None
    first, last = _mean(values[:WINDOW]), _mean(values[-WINDOW:])
    if last < first * (1 + DIVERGED_SHARE) or last < first + DIVERGED_NATS:
        return None
    before, after = _losses_before_and_after(records)
    if before is not None and after is not None and after < before:
        return None  # the later training rows are harder than the first ones
    return Verdict(
        question=question,
        state=BAD,
        sentence="No. It diverged: the training loss ends far above its start. Lower learning_rate.",
        figures=f"Training loss {first:.4f} at the start, {last:.4f} at the end.",
        rule=rule,
    )


def overfitting_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss rose from its best while the training loss did not."""
    question = "Does it overfit?"
    rule = (
        f"It overfits if the validation loss rose from its best by {RISE_SHARE:.0%}, {RISE_NATS} nats and its "
        f"fluctuation or more while the training loss (mean of {WINDOW} logged) did not rise. A rise of less than "
        f"{CLEAR_RISE_SHARE:.0%} takes more than one evaluation. {_ROWS_RULE}"
    )
    if records.evaluations and not is_number(records.evaluations[-1]["eval_loss"]):
        return None  # the run diverged, which the first verdict reports
    evaluations = evaluations_while_training(records)
    best = best_evaluation(evaluations)
    if best is None or len(evaluations) < 2:
        no_validation = records.data.validation is None
        why = "there is no validation data" if no_validation else "it takes at least two evaluations"
        return Verdict(question=question, state=UNKNOWN, sentence=f"Not known: {why}.", figures="", rule=rule)
    last = evaluations[-1]
    at_best, at_last = _training_loss_at(records, best["step"]), _training_loss_at(records, last["step"])
    figures = f"Best validation loss {best['eval_loss']:.4f} at step {best['step']:,}"
    if last is not best:
        figures += f", {last['eval_loss']:.4f} at step {last['step']:,}"
        if at_best is not None and at_last is not None:
            figures += f"; training loss {at_best:.4f} and {at_last:.4f} at these steps"
    few = _too_few_rows(records)
    state, sentence = (UNKNOWN, few) if few else _overfitting_sentence(records, evaluations, best, at_best, at_last)
    return Verdict(question=question, state=state, sentence=sentence, figures=f"{figures}.", rule=rule)


def _overfitting_sentence(
    records: ReportRecords,
    evaluations: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any],
    at_best: float | None,
    at_last: float | None,
) -> tuple[str, str]:
    rise = evaluations[-1]["eval_loss"] - best["eval_loss"]
    if not (rise >= RISE_NATS and rise >= RISE_SHARE * best["eval_loss"]):
        if sum(event["step"] > 0 for event in evaluations) < 2:
            return UNKNOWN, "No sign of it, but a single evaluation cannot show a rise. Lower eval_steps to see more."
        return GOOD, "No. The validation loss ends at or near its best."
    noise = MOST_SIGMAS * fluctuation([event["eval_loss"] for event in evaluations if event["step"] > 0])
    if rise <= noise:
        return UNKNOWN, f"Not known: the validation loss fluctuates by {noise:.4f}, as much as it rose from its best."
    if at_best is None or at_last is None:
        return WARN, "Perhaps: the validation loss rose from its best, but no training loss was logged to compare with."
    change = at_last - at_best
    if change > RISE_NATS and change > RISE_SHARE * at_best:
        return WARN, "No, but it got worse: validation and training loss rose together. Lower learning_rate."
    is_clear = best is not evaluations[-2] or rise >= CLEAR_RISE_SHARE * best["eval_loss"]
    is_kept = records.result is not None and records.result.eval_after is not None
    if is_kept and records.settings.get("load_best_model_at_end") and best["step"] > 0:
        did = "It did" if is_clear else "Perhaps"
        return GOOD, f"{did}, but the saved model is the best one, of step {best['step']:,}."
    if not is_clear:
        return WARN, "Perhaps: the validation loss rose at the last evaluation. A single rise is not yet a trend."
    training = "falls" if change < 0 else "does not rise"
    advice = "Train for fewer steps, use more data, or set load_best_model_at_end: true."
    how = f"the training loss {training} while the validation loss rises"
    return BAD, f"Yes, since step {best['step']:,}: {how}. {advice}"


def _training_loss_at(records: ReportRecords, step: int) -> float | None:
    """Mean of the last logged training losses up to a step; before the first of them, that one."""
    losses = [(at, loss) for at, loss in records.training_losses if is_number(loss)]
    if not losses:
        return None
    until = [loss for at, loss in losses if at <= step]
    return _mean(until[-WINDOW:]) if until else losses[0][1]


def duration_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss was still falling at the end; None unless the run completed with evaluations."""
    evaluations = [event for event in evaluations_while_training(records) if event["step"] > 0]
    if records.status != COMPLETED or not evaluations:
        return None
    trend = find_trend([(records.tokens_at(event["step"]), event["eval_loss"]) for event in evaluations])
    few = _too_few_rows(records)
    state, sentence = (UNKNOWN, few) if few else _duration_sentence(trend, evaluations)
    shown = evaluations[-FEWEST:]
    losses = ", ".join(f"{event['eval_loss']:.4f} at step {event['step']:,}" for event in shown)
    return Verdict(
        question="Did it train long enough?",
        state=state,
        sentence=sentence,
        figures=f"Validation loss {losses}.",
        rule="The evaluations after step 0 are averaged in three groups of equal number. It was still falling if the "
        "fall per token from group to group, continued for as many tokens as lie between two groups, lowers the loss "
        f"by {WORTHWHILE_SHARE:.0%} and {WORTHWHILE_NATS} nats or more, or has not slowed down. With fewer than "
        f"{FEWEST} evaluations only a fall by {CHANGE_SHARE:.0%} and {RISE_NATS} nats decides, and nothing does where "
        f"the losses fluctuate more. {_ROWS_RULE}",
    )


def _duration_sentence(trend: Trend, evaluations: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    losses = [event["eval_loss"] for event in evaluations]
    still_falls = "Perhaps not: the validation loss was still falling at the end. More steps may help."
    if trend.kind == TOO_FEW and len(losses) > 1:
        fall = losses[-2] - losses[-1]
        if fall >= RISE_NATS and fall >= CHANGE_SHARE * losses[-2]:
            return WARN, still_falls
    sentences = {
        FALLING: (WARN, still_falls),
        RISING: (GOOD, "Yes. The validation loss was rising at the end."),
        NOISY: (UNKNOWN, "Not known: the validation loss fluctuates more than it changed towards the end."),
        TOO_FEW: (UNKNOWN, f"Not known: a trend takes at least {FEWEST} evaluations after step 0 (eval_steps)."),
        FLAT: (GOOD, "Yes. The validation loss had stopped falling."),
    }
    if trend.kind == FLAT and trend.later > trend.uncertainty and trend.expected > 0.001:
        return GOOD, (
            "Yes, nearly. The validation loss fell less and less: a third more tokens would lower it by about "
            f"{trend.expected:.4f}."
        )
    return sentences[trend.kind]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
