"""What the losses show: whether the model learned, overfits, and was trained long enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft.common.text import change_text
from sft.reporting.report.records import COMPLETED, ReportRecords, best_evaluation, is_number
from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN, Verdict

CHANGE_SHARE = 0.02
"""A relative change of the validation loss below this counts as no change."""
RISE_SHARE, RISE_NATS = 0.01, 0.01
"""The validation loss has risen from its best if it rose by both: relative, and in nats per token."""
DIVERGED_SHARE, DIVERGED_NATS = 0.2, 0.1
"""The training loss has diverged if it ends above its start by both."""
TRAINING_FALL = 0.05
"""Without validation, a relative fall of the training loss by this counts as having learned the training rows."""
WINDOW = 5
"""Logged training losses that are averaged, since single ones fluctuate."""


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
    if change <= -CHANGE_SHARE:
        state, sentence = GOOD, "Yes. The validation loss fell."
    elif change < CHANGE_SHARE:
        state, sentence = WARN, "No. The validation loss is about the same as before training."
    else:
        state, sentence = BAD, "No. The validation loss is higher than before training."
    return Verdict(
        question=question,
        state=state,
        sentence=sentence,
        figures=f"Validation loss {before:.4f} before, {after:.4f} {_when(records)} ({change_text(change)}).",
        rule=f"It learned if the validation loss (nats per token) fell by {CHANGE_SHARE:.0%} or more from before "
        "training to the last evaluation, and got worse if it rose by as much.",
    )


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
    if len(losses) < 2:
        sentence = f"Not known yet: {why}, and too few losses were logged."
        return Verdict(question=question, state=UNKNOWN, sentence=sentence, figures="", rule=rule)
    width = min(WINDOW, len(losses) // 2)
    first, last = _mean(losses[:width]), _mean(losses[-width:])
    change = (last - first) / first if first else 0.0
    figures = f"Training loss {first:.4f} at the start, {last:.4f} at the end ({change_text(change)})."
    if change <= -TRAINING_FALL:
        state, sentence = UNKNOWN, f"The training loss fell. Whether the model generalizes is not known: {why}."
    else:
        state, sentence = WARN, f"Hardly: the training loss did not fall. Generalization is not known: {why}."
    if no_validation:
        sentence += " Set validation_file or validation_split."
    return Verdict(question=question, state=state, sentence=sentence, figures=figures, rule=rule)


def _divergence(question: str, records: ReportRecords) -> Verdict | None:
    """The verdict on a run with a loss that is NaN or inf, or that ends far above its start; else None."""
    losses = records.training_losses
    rule = (
        f"It diverged if a logged loss is NaN or inf, or if the mean of the last {WINDOW} training losses is "
        f"{DIVERGED_SHARE:.0%} and {DIVERGED_NATS} nats above the first."
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
    first, last = values[0], _mean(values[-WINDOW:])
    if last < first * (1 + DIVERGED_SHARE) or last < first + DIVERGED_NATS:
        return None
    return Verdict(
        question=question,
        state=BAD,
        sentence="No. It diverged: the training loss ends far above its start. Lower learning_rate.",
        figures=f"Training loss {first:.4f} at step {losses[0][0]:,}, {last:.4f} at the end.",
        rule=rule,
    )


def overfitting_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss rose from its best while the training loss kept falling."""
    question = "Does it overfit?"
    rule = (
        f"It overfits if the validation loss rose from its best by {RISE_SHARE:.0%} and {RISE_NATS} nats or more while "
        f"the training loss (mean of {WINDOW} logged) fell."
    )
    evaluations = records.evaluations
    best = best_evaluation(evaluations)
    if best is None or len(evaluations) < 2:
        no_validation = records.data.validation is None
        why = "there is no validation data" if no_validation else "it takes at least two evaluations"
        return Verdict(question=question, state=UNKNOWN, sentence=f"Not known: {why}.", figures="", rule=rule)
    last = evaluations[-1]
    if not is_number(last["eval_loss"]):
        return None  # the run diverged, which the first verdict reports
    rise = last["eval_loss"] - best["eval_loss"]
    at_best, at_last = _training_loss_at(records, best["step"]), _training_loss_at(records, last["step"])
    figures = f"Best validation loss {best['eval_loss']:.4f} at step {best['step']:,}"
    if last is not best:
        figures += f", {last['eval_loss']:.4f} at step {last['step']:,}"
        if at_best is not None and at_last is not None:
            figures += f"; training loss {at_best:.4f} and {at_last:.4f} at these steps"
    state, sentence = _overfitting_sentence(records, rise, best, at_best, at_last)
    return Verdict(question=question, state=state, sentence=sentence, figures=f"{figures}.", rule=rule)


def _overfitting_sentence(
    records: ReportRecords, rise: float, best: Mapping[str, Any], at_best: float | None, at_last: float | None
) -> tuple[str, str]:
    if not (rise >= RISE_NATS and rise >= RISE_SHARE * best["eval_loss"]):
        if sum(event["step"] > 0 for event in records.evaluations) < 2:
            return UNKNOWN, "No sign of it, but a single evaluation cannot show a rise. Lower eval_steps to see more."
        return GOOD, "No. The validation loss ends at or near its best."
    if at_best is None or at_last is None:
        return WARN, "Perhaps: the validation loss rose from its best, but no training loss was logged to compare with."
    if at_last >= at_best:
        return WARN, "No, but it got worse: validation and training loss rose together. Lower learning_rate."
    is_kept = records.result is not None and records.result.eval_after is not None
    if is_kept and records.settings.get("load_best_model_at_end") and best["step"] > 0:
        return GOOD, f"It did, but the saved model is the best one, of step {best['step']:,}."
    advice = "Train for fewer steps, use more data, or set load_best_model_at_end: true."
    return BAD, f"Yes, since step {best['step']:,}: the training loss falls while the validation loss rises. {advice}"


def _training_loss_at(records: ReportRecords, step: int) -> float | None:
    """Mean of the last logged training losses up to a step; before the first of them, that one."""
    losses = [(at, loss) for at, loss in records.training_losses if is_number(loss)]
    if not losses:
        return None
    until = [loss for at, loss in losses if at <= step]
    return _mean(until[-WINDOW:]) if until else losses[0][1]


def duration_verdict(records: ReportRecords) -> Verdict | None:
    """Whether the validation loss was still falling at the end; None unless the run completed with two evaluations."""
    evaluations = [event for event in records.evaluations if is_number(event["eval_loss"])]
    if records.status != COMPLETED or len([event for event in evaluations if event["step"] > 0]) < 2:
        return None
    before, last = evaluations[-2]["eval_loss"], evaluations[-1]["eval_loss"]
    falls = before - last >= RISE_NATS and before - last >= CHANGE_SHARE * before
    is_best = best_evaluation(evaluations) is evaluations[-1]
    state, sentence = GOOD, "Yes. The validation loss had stopped falling."
    if falls and is_best:
        state, sentence = WARN, "Perhaps not: the validation loss was still falling at the end. More steps may help."
    return Verdict(
        question="Did it train long enough?",
        state=state,
        sentence=sentence,
        figures=f"Validation loss {before:.4f} at step {evaluations[-2]['step']:,}, {last:.4f} at step "
        f"{evaluations[-1]['step']:,}.",
        rule=f"It was still improving if the last evaluation is the best, and {CHANGE_SHARE:.0%} and {RISE_NATS} nats "
        "or more below the previous one.",
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
