"""Ending training when the validation metric no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from sft.common.text import counted


class EarlyStopping(TrainerCallback):
    """Ends training after `patience` evaluations in a row without an improvement of more than `threshold`.

    transformers' callback of this kind loses its count when a run resumes. The state of this one is in the manifest of
    each checkpoint.
    """

    def __init__(self, metric: str, *, greater_is_better: bool, patience: int, threshold: float):
        """
        Args:
            metric: name of the metric, with `eval_`.
            greater_is_better: whether higher values are better.
            patience: evaluations without an improvement that end training.
            threshold: an improvement is larger than this.
        """
        self._metric = metric
        self._sign = 1.0 if greater_is_better else -1.0
        self._patience, self._threshold = patience, threshold
        self._best: float | None = None
        self._best_step = self._without = self._last_step = 0
        self.reason: str | None = None
        """Why training was stopped, as a sentence; None where it was not."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        if metrics is None or state.global_step <= self._last_step:
            return  # the evaluation before training, or one of a step that was evaluated already
        self._last_step = state.global_step
        value = metrics[self._metric]
        # NaN is no improvement
        if self._best is None or self._sign * (value - self._best) > self._threshold:
            self._best, self._best_step, self._without = value, state.global_step, 0
            return
        self._without += 1
        if self._without >= self._patience and state.global_step < state.max_steps:
            control.should_training_stop = True
            self._stopped(state.global_step)

    def _stopped(self, step: int) -> None:
        by = f" by more than {self._threshold:g}" if self._threshold else ""
        self.reason = (
            f"stopped early at step {step:,} since {self._metric} did not improve{by} in "
            f"{counted(self._without, 'evaluation')} after {self._best:.4f} at step {self._best_step:,} "
            "(early_stopping_patience)"
        )

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "metric": self._metric,
            "best": self._best,
            "best_step": self._best_step,
            "without": self._without,
            "last_step": self._last_step,
        }

    def resume_from(self, saved: Mapping[str, Any] | None) -> None:
        """Continue counting where a checkpoint was saved; of another metric, nothing is continued."""
        if not saved or saved.get("metric") != self._metric:
            return
        self._best, self._best_step = saved["best"], saved["best_step"]
        self._without, self._last_step = saved["without"], saved["last_step"]
        if self._without >= self._patience:
            self._stopped(self._last_step)


def add_early_stopping(trainer: Any) -> EarlyStopping | None:
    """The callback, added to a trainer; None where the settings ask for none."""
    config, arguments = trainer.setup.config.training, trainer.args
    if config.early_stopping_patience is None:
        return None
    name = str(arguments.metric_for_best_model)
    callback = EarlyStopping(
        name if name.startswith("eval_") else f"eval_{name}",
        greater_is_better=bool(arguments.greater_is_better),
        patience=config.early_stopping_patience,
        threshold=config.early_stopping_threshold,
    )
    trainer.add_callback(callback)
    return callback


def stopped_early_at(manifest: Mapping[str, Any], patience: int | None) -> int | None:
    """The step at which the run of a checkpoint was stopped early; None where it was not, or would go on now."""
    saved = manifest.get("early_stopping") or {}
    if patience is None or saved.get("without", 0) < patience:
        return None
    step: int = saved["last_step"]
    return step
