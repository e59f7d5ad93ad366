"""Shows the progress of training: a live line on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from sft.processes.terminal import log_drawn
from sft.reporting.log_lines import evaluation_line, evaluation_rows, live_parts, progress_line
from sft.reporting.time_left import TimeLeft
from sft.training.progress import TrainingProgress

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine

logger = logging.getLogger("sft.train")
_SECONDS_BETWEEN_DRAWINGS = 0.2


class DisplayCallback(TrainerCallback):
    """Shows the step, the metrics and the time left. Main process only."""

    def __init__(
        self,
        progress: TrainingProgress,
        *,
        first_step: int,
        total_steps: int,
        steps_per_epoch: int,
        has_validation: bool,
    ):
        """
        Args:
            progress: the run's clock; it reports when training pauses.
            first_step: step from which the run starts or resumes.
            total_steps: steps of the run.
            steps_per_epoch: steps of an epoch.
            has_validation: whether the run ends with an evaluation.
        """
        self.line: LiveLine | None = None
        """The terminal's live line; None without a terminal."""
        self._progress = progress
        self._first_step, self._total, self._per_epoch = first_step, total_steps, steps_per_epoch
        self._has_validation = has_validation
        self._step, self._activity = first_step, ""
        self._logs: dict[str, float] = {}
        self._previous_evaluation: dict[str, float] | None = None
        self._time_left: TimeLeft | None = None
        self._last_drawing = 0.0
        self._evaluation_seconds = 0.0
        progress.on_pause = self._on_pause

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        evaluation = self._interval(args.eval_strategy, state.eval_steps)
        if evaluation is None and self._has_validation:
            evaluation = 0
        saving = self._interval(args.save_strategy, state.save_steps)
        self._time_left = TimeLeft(
            first_step=self._first_step, total_steps=self._total, evaluation_every=evaluation, saving_every=saving
        )
        self._time_left.add_wait("evaluating", self._evaluation_seconds)
        self._draw()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._time_left is not None:
            self._time_left.add_step(self._step, self._progress.seconds())
        if time.monotonic() - self._last_drawing >= _SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs:
            return
        if "loss" in logs:
            self._logs = dict(logs)
            left = self._seconds_left() if self.line is None else None
            logger.info(progress_line(state.global_step, self._total, logs, left), extra={"is_progress": True})
            self._draw()
        elif "eval_loss" in logs:
            table = None
            if self.line is not None:
                header = ["", "value", *(["change"] if self._previous_evaluation else [])]
                rows = evaluation_rows(logs, self._previous_evaluation)
                table = self.line.table(f"validation at step {state.global_step}", header, rows)
            log_drawn(logger, [evaluation_line(state.global_step, logs, self._previous_evaluation)], table)
            self._previous_evaluation = dict(logs)

    def _interval(self, strategy: Any, steps: float | None) -> int | None:
        """Steps between two evaluations or checkpoints; None if there are none."""
        if strategy == IntervalStrategy.STEPS:
            return max(int(steps or 1), 1)
        return self._per_epoch if strategy == IntervalStrategy.EPOCH else None

    def _on_pause(self, activity: str, seconds: float | None) -> None:
        """Called when training pauses for an activity, and again, with the duration, when it continues."""
        self._activity = activity if seconds is None else ""
        if seconds is not None:
            if activity == "evaluating":
                self._evaluation_seconds = seconds
            if self._time_left is not None:
                self._time_left.add_wait(activity, seconds)
        self._draw()

    def _draw(self) -> None:
        if self.line is None:
            return
        self._last_drawing = time.monotonic()
        self.line.show(live_parts(self._step, self._total, self._activity, self._seconds_left(), self._logs))

    def _seconds_left(self) -> float | None:
        return self._time_left.seconds() if self._time_left is not None else None
