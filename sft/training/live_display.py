"""What a person sees of a run while it trains: a line drawn anew on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from sft.reporting.log_lines import evaluation_line, evaluation_table, live_parts, progress_line
from sft.reporting.time_left import TimeLeft
from sft.training.progress import TrainingProgress

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine

logger = logging.getLogger("sft.train")
_SECONDS_BETWEEN_DRAWINGS = 0.2


class DisplayCallback(TrainerCallback):
    """Tells how far training is. Of several processes only the first one has one."""

    def __init__(
        self, progress: TrainingProgress, *, first_step: int, total_steps: int, steps_per_epoch: int,
        has_validation: bool,
    ):  # fmt: skip
        """Args:
        progress: the run's clock, which tells when training waits.
        first_step: the step that the run goes on from.
        total_steps, steps_per_epoch: of the batch plan.
        has_validation: whether there is an evaluation at the end in any case.
        """
        self.line: LiveLine | None = None
        """The terminal's line; None where there is no terminal."""
        self._progress = progress
        self._first_step, self._total, self._per_epoch = first_step, total_steps, steps_per_epoch
        self._has_validation = has_validation
        self._step, self._doing = first_step, ""
        self._logs: dict[str, float] = {}
        self._before: dict[str, float] | None = None
        self._time_left: TimeLeft | None = None
        self._drawn = 0.0
        self._evaluation_seconds = 0.0
        progress.on_wait = self._wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        evaluation = self._every(args.eval_strategy, state.eval_steps)
        if evaluation is None and self._has_validation:
            evaluation = 0
        saving = self._every(args.save_strategy, state.save_steps)
        self._time_left = TimeLeft(
            first_step=self._first_step, total_steps=self._total, evaluation_every=evaluation, saving_every=saving
        )
        self._time_left.add_wait("evaluating", self._evaluation_seconds)
        self._draw()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = state.global_step
        if self._time_left is not None:
            self._time_left.add_step(self._step, self._progress.seconds())
        if time.monotonic() - self._drawn >= _SECONDS_BETWEEN_DRAWINGS:
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
            if self.line is None:
                logger.info(evaluation_line(state.global_step, logs, self._before))
            else:
                logger.info("\n".join(evaluation_table(state.global_step, logs, self._before)))
            self._before = dict(logs)

    def _every(self, strategy: Any, steps: float | None) -> int | None:
        if strategy == IntervalStrategy.STEPS:
            return max(int(steps or 1), 1)
        return self._per_epoch if strategy == IntervalStrategy.EPOCH else None

    def _wait(self, kind: str, seconds: float | None) -> None:
        """Is told that training waits for something, and when that is over how long it took."""
        self._doing = kind if seconds is None else ""
        if seconds is not None:
            if kind == "evaluating":
                self._evaluation_seconds = seconds
            if self._time_left is not None:
                self._time_left.add_wait(kind, seconds)
        self._draw()

    def _draw(self) -> None:
        if self.line is None:
            return
        self._drawn = time.monotonic()
        self.line.show(live_parts(self._step, self._total, self._doing, self._seconds_left(), self._logs))

    def _seconds_left(self) -> float | None:
        return self._time_left.seconds() if self._time_left is not None else None
