"""Evaluations that a signal interrupts: the resumed run repeats them and equals an uninterrupted run."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import transformers

from tests.support import messages

EDGE = {"validation_split": 0.25, "num_train_epochs": 2, "sample_prompts": "[]", "save_total_limit": "null"}


def without_times(run):
    """What a run logged, except for what depends on the clock and the machine."""
    of_machine = ("runtime", "per_second", "memory", "utilization")
    return [
        {name: value for name, value in event.items() if not any(sign in name for sign in of_machine)}
        for event in run.metrics
        if "train_loss" not in event
    ]


def add_to_trainers(patched, callback):
    """Gives each trainer that is built a callback of a class, last."""
    import trainer_utils

    build_trainer = trainer_utils.build_trainer

    def build(*args, **kwargs):
        prepared = build_trainer(*args, **kwargs)
        prepared.trainer.add_callback(callback())
        return prepared

    patched.setattr(trainer_utils, "build_trainer", build)


@pytest.mark.parametrize(
    ("settings", "from_edge"), [({}, 0), ({"logging_strategy": "epoch"}, 0), ({"logging_strategy": "epoch"}, -1)]
)
def test_a_run_stopped_at_the_end_of_an_epoch_makes_that_evaluation_when_it_is_resumed(
    run_sft, tmp_path, monkeypatch, settings, from_edge
):
    settings = {**EDGE, **settings, "load_best_model_at_end": True}
    uninterrupted = run_sft(output_dir=str(tmp_path / "uninterrupted"), **settings)
    edge = uninterrupted.summary["batch_plan"]["steps_per_epoch"]

    class Signal(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step + 1 == edge + from_edge:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        add_to_trainers(patched, Signal)
        stopped = run_sft(**settings)
    assert stopped.status == 143
    assert [event["step"] for event in stopped.metrics if "eval_loss" in event] == [0]
    for _ in range(2):  # the second time as if killed after the epoch's evaluation
        again = run_sft(resume_from_checkpoint="auto", **settings)
        assert again.status == 0, again.err
        assert without_times(again) == without_times(uninterrupted)
        shutil.rmtree(again.output_dir / f"checkpoint-{2 * edge}")
    state = json.loads((uninterrupted.output_dir / f"checkpoint-{2 * edge}" / "trainer_state.json").read_text())
    assert again.summary["eval_after"] == uninterrupted.summary["eval_after"]
    assert state["best_global_step"] in (edge, 2 * edge)


@pytest.mark.parametrize("where", ["a step", "the last step", "an epoch", "the answers", "the repeated evaluation"])
def test_a_signal_interrupts_an_evaluation_and_the_resumed_run_repeats_it(run_sft, tmp_path, monkeypatch, where):
    settings = {
        "validation_split": 0.5,
        "max_steps": 6,
        "save_total_limit": "null",
        "per_device_eval_batch_size": 2,
        "load_best_model_at_end": True,
        "sample_max_new_tokens": 4,
    }
    settings |= {} if where == "an epoch" else {"eval_steps": 2, "save_steps": 2}
    uninterrupted = run_sft(output_dir=str(tmp_path / "uninterrupted"), **settings)
    edge = uninterrupted.summary["batch_plan"]["steps_per_epoch"]
    assert edge == 3
    at = {"an epoch": edge, "the last step": 6}.get(where, 4)

    class Signal(transformers.TrainerCallback):
        batches = 0

        def on_prediction_step(self, args, state, control, **kwargs):
            self.batches += state.global_step == at
            if self.batches == 2 and where != "the answers":
                signal.raise_signal(signal.SIGTERM)

        def on_evaluate(self, args, state, control, **kwargs):
            if state.global_step == at and where == "the answers":
                signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        add_to_trainers(patched, Signal)
        stopped = run_sft(**settings)
        assert stopped.status == 143, stopped.err
        assert f"{messages.STOPPED_AT} {at} of 6, saved in" in stopped.out
        was_interrupted = messages.EVALUATION_INTERRUPTED.format(step=at) in stopped.out
        assert was_interrupted == (where != "the answers")
        assert (at in [event["step"] for event in stopped.metrics if "eval_loss" in event]) == (not was_interrupted)
        if where == "the repeated evaluation":
            again = run_sft(**settings, resume_from_checkpoint="auto")
            assert again.status == 143
            assert again.err.count("\n") == 1
            assert messages.ENDED_BY.format(signal="SIGTERM") in again.err
    again = run_sft(**settings, resume_from_checkpoint="auto")
    assert again.status == 0, again.err
    assert without_times(again) == without_times(uninterrupted)
    lines = [(run.output_dir / "samples.jsonl").read_text() for run in (again, uninterrupted)]
    assert lines[0] == lines[1]
    weights = [(run.output_dir / "model.safetensors").read_bytes() for run in (again, uninterrupted)]
    assert weights[0] == weights[1]
