"""Callbacks for the order of rows, evaluations that are due, `metrics.jsonl` and the watchdog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from sft.batching.order import RankBatchSampler
from sft.modeling.fitting import SPECIAL_TOKEN_IDS
from sft.processes.watchdog import SLOW, Watchdog
from sft.reporting.metrics_log import MetricsLog

HISTORY = 100
"""Number of log events that a checkpoint keeps in `trainer_state.json`; `metrics.jsonl` has them all."""


class OrderCallback(TrainerCallback):
    """Sets the sampler's epoch from the step, so that a resumed run trains on the same order of rows."""

    def __init__(self, sampler: RankBatchSampler | None, steps_per_epoch: int):
        """
        Args:
            sampler: None for a stream, which has no epochs: the share of all steps is logged instead.
            steps_per_epoch: of the batch plan.
        """
        self._sampler = sampler
        self._steps_per_epoch = steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._sampler is not None:
            self._sampler.set_epoch(state.global_step // self._steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._sampler is None:
            # Trainer counts from where the resumed stream starts.
            state.epoch = state.global_step / self._steps_per_epoch


class SpecialTokensCallback(TrainerCallback):
    """Keeps the special tokens of the model's configurations: Trainer aligns them with the tokenizer once more.

    transformers 5.17 clears those that the tokenizer does not define, and keeps one end token of several.
    """

    def __init__(self, model: Any):
        self._configurations = (model.config, model.generation_config)
        self._kept = [[getattr(each, name, None) for name in SPECIAL_TOKEN_IDS] for each in self._configurations]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for configuration, kept in zip(self._configurations, self._kept, strict=True):
            for name, value in zip(SPECIAL_TOKEN_IDS, kept, strict=True):
                setattr(configuration, name, value)


class MissedEvaluationCallback(TrainerCallback):
    """Makes the evaluation that was due when the checkpoint was saved, if the interrupted run did not finish it."""

    def __init__(self, trainer: Any, steps_per_epoch: int):
        """
        Args:
            trainer: with `resume_step` and `evaluate_now`.
            steps_per_epoch: of the batch plan.
        """
        self._trainer = trainer
        self._steps_per_epoch = steps_per_epoch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self._trainer.resume_step
        is_epoch_end = step % self._steps_per_epoch == 0 and self._trainer.train_sampler is not None
        is_due = {"epoch": is_epoch_end, "steps": step % max(state.eval_steps, 1) == 0}.get(
            str(args.eval_strategy.value)
        )
        was_made = any("eval_loss" in event and event["step"] == step for event in state.log_history)
        if step > 0 and is_due and step >= (args.eval_delay or 0) and not was_made:
            self._trainer.evaluate_now()


class RecordCallback(TrainerCallback):
    """Writes every log event into `metrics.jsonl`, and bounds Trainer's own list, which every checkpoint contains."""

    def __init__(self, metrics_log: MetricsLog | None):
        self._metrics_log = metrics_log

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == state.max_steps:
            control.should_log = True  # otherwise the steps since the last log would not be logged

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._metrics_log is not None and logs is not None:
            self._metrics_log.write(state.global_step, logs)
        state.log_history[:] = recent_events(state.log_history)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[:] = recent_events(state.log_history)  # of a checkpoint that kept them all


def recent_events(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last `HISTORY` events, and before them the last evaluation and the last training loss if they are older."""
    recent = list(history[-HISTORY:])
    for name in ("loss", "eval_loss"):
        if not any(name in event for event in recent):
            recent[:0] = [event for event in history[:-HISTORY] if name in event][-1:]
    return recent


class WatchCallback(TrainerCallback):
    """Reports each step, micro-batch and evaluation batch to the watchdog, and what comes next. Add it last."""

    def __init__(self, watchdog: Watchdog):
        self._watchdog = watchdog
        self._patience = SLOW
        """For steps: the first one takes longer."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._patience = 1
        self._expect_next(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watchdog.expect("evaluating at step", state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._expect_next(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watchdog.expect("ending the training at step", state.global_step, patience=SLOW)

    def _expect_next(self, state: Any, control: Any) -> None:
        if control.should_evaluate:
            self._watchdog.expect("evaluating at step", state.global_step, patience=self._patience)
        elif control.should_save:
            self._watchdog.expect("saving at step", state.global_step, patience=SLOW)
        else:
            self._watchdog.expect("in step", state.global_step + 1, patience=self._patience)
