"""Verdicts from the losses, case by case: the same records always give the same verdict."""

from __future__ import annotations

import pytest

from sft.reporting.report.verdicts.verdict import BAD, GOOD, UNKNOWN, WARN
from tests.support.report_records import data, evaluation, falling, in_order, records, result, train_event
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
    assert "there is no validation data" in found.sentence
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
    assert "It diverged" in found.sentence
    assert found.figures


def overfitting(last=1.2, training_last=0.2):
    losses = falling(last=training_last)
    return in_order(losses, [evaluation(0, 3.0), evaluation(25, 1.5), evaluation(50, 1.0), evaluation(100, last)])


def test_overfitting_if_validation_rises_while_training_falls():
    found = verdict_on(OVERFIT, events=overfitting(), result=result(after=1.2))
    assert found.state == BAD
    assert "since step 50" in found.sentence
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
    assert (found.state, "rose together" in found.sentence) == (WARN, True)


def test_overfitting_but_the_best_model_is_saved():
    settings = {**records().settings, "load_best_model_at_end": True}
    found = verdict_on(OVERFIT, events=overfitting(), settings=settings, result=result(after=1.0))
    assert (found.state, "of step 50" in found.sentence) == (GOOD, True)
    still_runs = verdict_on(OVERFIT, events=overfitting(), settings=settings, result=None, status="running")
    assert still_runs.state == BAD


def test_overfitting_is_unknown_from_a_single_evaluation():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(100, 1.0)])
    assert verdict_on(OVERFIT, events=events).state == UNKNOWN
    assert verdict_on(OVERFIT, events=falling()).state == UNKNOWN


def test_long_enough_unless_the_loss_still_falls():
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, 2.0), evaluation(100, 1.0)])
    found = verdict_on(LONG, events=events)
    assert (found.state, "More steps may help" in found.sentence) == (WARN, True)
    assert verdict_on(LONG, events=events, status="interrupted") is None
