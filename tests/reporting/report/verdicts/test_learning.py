"""Verdicts from the losses, case by case: the same records always give the same verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN
from tests.support import messages
from tests.support.report_records import data, evaluation, falling, in_order, records, result, split, train_event
from tests.support.verdicts import LEARN, LONG, OVERFIT, verdict_on


@pytest.mark.parametrize(
    ("after", "state"), [(1.0, GOOD), (2.94, GOOD), (2.95, WARN), (3.0, WARN), (3.05, WARN), (3.07, BAD)]
)
def test_learned_by_the_change_of_the_validation_loss(after, state):
    found = verdict_on(LEARN, result=result(before=3.0, after=after))
    assert found.state == state
    assert f"3.0000 before, {after:.4f} after" in found.figures


def test_learned_during_a_run_compares_the_last_evaluation():
    events = in_order(falling()[:10], [evaluation(0, 3.0), evaluation(50, 1.5)])
    found = verdict_on(LEARN, status="running", step=50, result=None, events=events)
    assert (found.state, found.figures) == (GOOD, "Validation loss 3.0000 before, 1.5000 at step 50 (-50.0%).")


@pytest.mark.parametrize(("last", "state"), [(0.5, UNKNOWN), (2.95, WARN)])
def test_learned_without_validation_judges_the_training_loss_only(last, state):
    run = {
        "data": data(has_validation=False),
        "events": falling(last=last),
        "result": result(before=None, after=None),
    }
    found = verdict_on(LEARN, **run)
    assert found.state == state
    assert messages.VERDICT_NO_VALIDATION in found.sentence
    assert "validation_split" in found.sentence
    assert verdict_on(OVERFIT, **run).state == UNKNOWN
    assert verdict_on(LONG, **run) is None


def test_learned_is_unknown_before_anything_was_logged():
    found = verdict_on(LEARN, status="running", step=0, result=None, events=[])
    assert found.state == UNKNOWN


@pytest.mark.parametrize(
    "events",
    [
        [*falling()[:5], train_event(30, None)],
        [*falling(), evaluation(100, None)],
        [*falling(first=0.5, last=3.0)],
    ],
)
def test_learned_reports_divergence(events):
    found = verdict_on(LEARN, events=events, result=None, status="running")
    assert found.state == BAD
    assert f"It {messages.VERDICT_DIVERGED}" in found.sentence
    assert found.figures


def overfitting(last=1.2, training_last=0.2):
    losses = falling(last=training_last)
    return in_order(losses, [evaluation(0, 3.0), evaluation(25, 1.5), evaluation(50, 1.0), evaluation(100, last)])


def test_overfitting_if_validation_rises_while_training_falls():
    found = verdict_on(OVERFIT, events=overfitting(), result=result(after=1.2))
    assert found.state == BAD
    assert messages.VERDICT_SINCE.format(step=50) in found.sentence
    assert "1.0000 at step 50, 1.2000 at step 100; training loss" in found.figures


@pytest.mark.parametrize("last", [1.0, 1.009, 0.9])
def test_no_overfitting_if_validation_stays(last):
    assert verdict_on(OVERFIT, events=overfitting(last)).state == GOOD


def test_overfitting_needs_nats_as_well_as_a_share():
    """0.002 to 0.003 is a rise by half, but negligible."""
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, 0.002), evaluation(100, 0.003)])
    assert verdict_on(OVERFIT, events=events).state == GOOD


def test_no_overfitting_if_both_losses_rise():
    events = in_order(
        [train_event(step, 1.0 if step <= 50 else 1.1) for step in range(5, 101, 5)],
        [evaluation(0, 3.0), evaluation(50, 1.0), evaluation(100, 1.3)],
    )
    found = verdict_on(OVERFIT, events=events)
    assert (found.state, messages.VERDICT_BOTH_ROSE in found.sentence) == (WARN, True)


def test_overfitting_but_the_best_model_is_saved():
    settings = {**records().settings, "load_best_model_at_end": True}
    found = verdict_on(OVERFIT, events=overfitting(), settings=settings, result=result(after=1.0))
    assert (found.state, messages.VERDICT_BEST.format(step=50) in found.sentence) == (GOOD, True)
    still_runs = verdict_on(OVERFIT, events=overfitting(), settings=settings, result=None, status="running")
    assert still_runs.state == BAD


def test_overfitting_is_unknown_from_a_single_evaluation():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(100, 1.0)])
    assert verdict_on(OVERFIT, events=events).state == UNKNOWN
    assert verdict_on(OVERFIT, events=falling()).state == UNKNOWN


def at_steps(*losses, every=25, before=3.0):
    """Evaluations before training and then every `every` steps, among falling training losses."""
    later = [evaluation(step * every, loss) for step, loss in enumerate(losses, start=1)]
    return in_order(falling(), [evaluation(0, before), *later])


def test_long_enough_unless_the_loss_still_falls():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, 2.0), evaluation(100, 1.0)])
    found = verdict_on(LONG, events=events)
    assert (found.state, messages.VERDICT_MORE_STEPS in found.sentence) == (WARN, True)
    assert verdict_on(LONG, events=events, status="interrupted") is None


@pytest.mark.parametrize(
    ("losses", "state", "words"),
    [
        ((2.5, 2.48, 2.45, 2.41), WARN, "still falling"),
        ((2.5, 2.495, 2.485, 2.47), WARN, "still falling"),
        ((2.0, 1.0, 0.995, 0.995), GOOD, "had stopped falling"),
        ((1.8, 1.4, 1.2, 1.18), GOOD, "less and less"),
        ((1.4, 1.0, 1.2, 1.3), GOOD, "was rising"),
        ((1.0, 1.3, 1.0, 1.3), UNKNOWN, "fluctuates"),
        ((1.0, 1.1, 1.3, 1.0), UNKNOWN, "fluctuates"),
        ((1.0, 0.995), UNKNOWN, "at least 3 evaluations"),
        ((1.0,), UNKNOWN, "at least 3 evaluations"),
    ],
)
def test_long_enough_by_the_trend_of_the_evaluations(losses, state, words):
    found = verdict_on(LONG, events=at_steps(*losses))
    assert (found.state, words in found.sentence) == (state, True), found.sentence
    assert f"{losses[-1]:.4f} at step {25 * len(losses)}" in found.figures


def test_long_enough_compares_falls_per_token_not_per_step():
    """Per step the falls shrink from 0.10 to 0.05; per token, of which the later steps have half, they do not."""
    tokens = {25: 4000, 50: 8000, 75: 10_000, 100: 12_000}
    losses = [train_event(step, 1.0, supervised_tokens_seen=seen) for step, seen in tokens.items()]
    evaluations = [evaluation(50, 2.0), evaluation(75, 1.975), evaluation(100, 1.95)]
    assert verdict_on(LONG, events=in_order(losses, evaluations)).state == WARN
    shrinking = [evaluation(25, 2.0), evaluation(75, 1.96), evaluation(100, 1.958)]
    assert verdict_on(LONG, events=in_order(losses, shrinking)).state == GOOD


def test_the_best_weights_loaded_at_the_end_are_no_point_of_the_curve():
    """They are evaluated at the last step, although the weights of that step were worse."""
    settings = {**records().settings, "load_best_model_at_end": True}
    losses = in_order(falling(), [evaluation(30, 1.5), evaluation(60, 1.0), evaluation(90, 1.4), evaluation(100, 1.0)])
    run = {"events": losses, "settings": settings, "result": result(after=1.0)}
    assert messages.VERDICT_WAS_RISING in verdict_on(LONG, **run).sentence
    assert messages.VERDICT_BEST_SAVED.format(step=60) in verdict_on(OVERFIT, **run).sentence


@pytest.mark.parametrize(("rows", "state"), [(1, UNKNOWN), (3, UNKNOWN), (9, UNKNOWN), (10, GOOD)])
@pytest.mark.parametrize("question", [LEARN, OVERFIT, LONG])
def test_few_validation_rows_decide_nothing(question, rows, state):
    validation = replace(split("validation.jsonl"), rows_read=rows, rows_used=rows)
    found = verdict_on(question, data=data(validation=validation))
    assert found.state == state
    assert (messages.VERDICT_FEW_ROWS.format(rows=rows) in found.sentence) == (state == UNKNOWN)
    assert found.figures


@pytest.mark.parametrize(
    ("rises", "state", "words"),
    [
        ((1.0, 1.02), WARN, "A single rise"),
        ((1.0, 1.02, 1.03), BAD, "since step 25"),
        ((1.0, 1.1), BAD, "since step 25"),
        ((1.0, 1.06, 1.01, 1.05, 1.0, 1.06, 1.03), UNKNOWN, "fluctuates"),
    ],
)
def test_overfitting_needs_more_than_a_small_single_rise(rises, state, words):
    found = verdict_on(OVERFIT, events=at_steps(*rises, every=14 if len(rises) > 4 else 25))
    assert (found.state, words in found.sentence) == (state, True), found.sentence


def test_overfitting_with_a_training_loss_that_stays():
    losses = [train_event(step, 0.01) for step in range(5, 101, 5)]
    events = in_order(losses, [evaluation(25, 1.0), evaluation(50, 1.2), evaluation(75, 1.4)])
    found = verdict_on(OVERFIT, events=events)
    assert (found.state, messages.VERDICT_NO_RISE in found.sentence) == (BAD, True), found.sentence


def without_validation(*losses):
    events = [train_event(5 * number, loss) for number, loss in enumerate(losses, start=1)]
    return {"data": data(has_validation=False), "events": events, "result": result(before=None, after=None)}


@pytest.mark.parametrize(
    ("losses", "state", "words"),
    [
        ((3.0,), UNKNOWN, "too few losses"),
        ((3.0, 1.0), UNKNOWN, "too few losses"),
        ((3.0, 1.0, 3.0, 1.0, 2.8, 1.2), UNKNOWN, "fluctuates as much"),
        ((2.0, 1.99, 1.98, 1.97, 1.96, 1.95, 1.94, 1.93), WARN, "fell by less than 5%"),
        ((2.0, 2.01, 2.02, 2.03, 2.04, 2.05, 2.06, 2.07), WARN, "did not fall"),
        ((3.0, 2.8, 2.6, 2.4, 2.2, 2.0), UNKNOWN, "The training loss fell"),
    ],
)
def test_learned_by_training_losses_that_fluctuate(losses, state, words):
    found = verdict_on(LEARN, **without_validation(*losses))
    assert (found.state, words in found.sentence) == (state, True), found.sentence


def test_one_lucky_first_loss_or_harder_later_rows_are_no_divergence():
    lucky = [train_event(5 * number, loss) for number, loss in enumerate([0.5, *[1.0] * 19], start=1)]
    assert messages.VERDICT_DIVERGED not in verdict_on(LEARN, events=lucky, result=None, status="running").sentence
    harder = in_order(falling(first=0.5, last=3.0), [evaluation(0, 3.0), evaluation(100, 1.0)])
    assert verdict_on(LEARN, events=harder).state == GOOD


@pytest.mark.parametrize(("before", "after"), [(0.002, 0.004), (0.004, 0.002)])
def test_a_negligible_change_of_a_small_loss_is_none(before, after):
    assert verdict_on(LEARN, result=result(before=before, after=after)).state == WARN
