"""When early stopping ends training, and what a checkpoint keeps of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sft.training.early_stopping import EarlyStopping, stopped_early_at


def stopping(**settings):
    return EarlyStopping("eval_loss", **{"greater_is_better": False, "patience": 2, "threshold": 0.0} | settings)


def step_of_stop(callback, values, *, first=1, max_steps=100):
    for step, value in enumerate(values, start=first):
        control = SimpleNamespace(should_training_stop=False)
        callback.on_evaluate(
            None, SimpleNamespace(global_step=step, max_steps=max_steps), control, {"eval_loss": value}
        )
        if control.should_training_stop:
            return step
    return None


@pytest.mark.parametrize(
    ("settings", "values", "step"),
    [
        ({}, [3, 2, 2.5, 1, 1.5, 1.2], 6),
        ({}, [3, 2, 1], None),
        ({"threshold": 1.0}, [3, 2, 2.1], 3),
        ({"greater_is_better": True}, [3, 2, 1], 3),
        ({}, [3, float("nan"), float("nan")], 3),
        ({"patience": 1}, [3, 3], 2),
    ],
)
def test_when_it_stops(settings, values, step):
    assert step_of_stop(stopping(**settings), values) == step


def test_the_last_step_of_a_run_is_no_early_stop():
    callback = stopping()
    assert step_of_stop(callback, [1, 2, 3], max_steps=3) is None
    assert callback.reason is None


def test_a_resumed_run_stops_at_the_same_step():
    values = [3, 2, 2.5, 1, 1.5, 1.2]
    for saved_at in range(1, 6):
        before, after = stopping(), stopping()
        assert step_of_stop(before, values[:saved_at]) is None
        after.resume_from(before.state_dict())
        assert step_of_stop(after, values[saved_at:], first=saved_at + 1) == 6


def test_the_evaluation_of_a_step_counts_once():
    callback = stopping(patience=1)
    assert step_of_stop(callback, [1]) is None
    assert step_of_stop(callback, [1]) is None  # repeated by a resumed run


def test_another_metric_starts_anew():
    before = stopping()
    step_of_stop(before, [1, 2])
    after = EarlyStopping("eval_perplexity", greater_is_better=False, patience=2, threshold=0.0)
    after.resume_from(before.state_dict())
    assert after.state_dict()["best"] is None


def test_whether_a_run_was_stopped():
    manifest = {"early_stopping": {"without": 2, "last_step": 9}}
    assert stopped_early_at(manifest, 2) == 9
    assert stopped_early_at(manifest, 3) is None
    assert stopped_early_at(manifest, None) is None
    assert stopped_early_at({}, 2) is None
