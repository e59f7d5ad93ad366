"""Callbacks of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerState

from sft.reporting.metrics_log import MetricsLog, read_metrics
from sft.training.callbacks import HISTORY, RecordCallback, recent_events


def loss(step: int) -> dict[str, float]:
    return {"loss": 1.0, "learning_rate": 1e-4, "epoch": 0.1, "step": step}


def evaluation(step: int) -> dict[str, float]:
    return {"eval_loss": 2.0, "epoch": 0.1, "step": step}


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        ([], []),
        ([loss(1), evaluation(1)], [loss(1), evaluation(1)]),
        ([loss(i) for i in range(HISTORY)], [loss(i) for i in range(HISTORY)]),
        ([loss(i) for i in range(HISTORY + 5)], [loss(i) for i in range(5, HISTORY + 5)]),
        (
            [evaluation(0), evaluation(1), *(loss(i) for i in range(2, HISTORY + 9))],
            [evaluation(1), *(loss(i) for i in range(9, HISTORY + 9))],
        ),
        (
            [loss(0), loss(1), *(evaluation(i) for i in range(2, HISTORY + 2))],
            [loss(1), *(evaluation(i) for i in range(2, HISTORY + 2))],
        ),
    ],
    ids=["none", "few", "just all", "more", "the last evaluation is older", "the last loss is older"],
)
def test_recent_events_are_kept_with_the_last_evaluation_and_loss(history, kept):
    assert recent_events(history) == kept
    assert recent_events(recent_events(history)) == kept


def test_trainer_state_does_not_grow_and_the_metrics_log_has_every_event(tmp_path: Path):
    callback, state = RecordCallback(MetricsLog(tmp_path / "metrics.jsonl")), TrainerState()
    sizes = []
    for step in range(1, 10 * HISTORY + 1):
        state.global_step = step
        for event in [loss(step)] + [evaluation(step)] * (step % 7 == 0):
            state.log_history.append(event)
            callback.on_log(None, state, None, logs=dict(event))
        if step % HISTORY == 0:
            state.save_to_json(str(tmp_path / "trainer_state.json"))
            sizes.append((tmp_path / "trainer_state.json").stat().st_size)
    assert max(sizes[1:]) < 1.1 * min(sizes[1:])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 10 * HISTORY + 10 * HISTORY // 7


def test_a_long_history_of_an_earlier_checkpoint_is_bounded_when_training_resumes():
    state = TrainerState(log_history=[evaluation(3), *(loss(step) for step in range(4, 5000))])
    RecordCallback(None).on_train_begin(None, state, None)
    assert len(state.log_history) == HISTORY + 1
    assert state.log_history[0] == evaluation(3)
    assert state.log_history[-1] == loss(4999)
