"""The remaining time of a run, estimated from its last steps, evaluations and checkpoints."""

from __future__ import annotations

from collections import deque

_RECENT_STEPS = 50
EVALUATING, SAVING = "evaluating", "saving"
"""Kinds of waiting between steps."""


class TimeLeft:
    """An estimate in seconds."""

    def __init__(self, *, first_step: int, total_steps: int, evaluation_every: int | None, saving_every: int | None):
        """
        Args:
            first_step: the step that the run resumes from; 0 for a fresh start.
            total_steps: of the run.
            evaluation_every: steps between evaluations; 0: only at the end; None: never.
            saving_every: steps between checkpoints; likewise.
        """
        self._total = total_steps
        self._every = {EVALUATING: evaluation_every, SAVING: saving_every}
        self._seconds = {EVALUATING: 0.0, SAVING: 0.0}
        self._waited_at = {EVALUATING: first_step, SAVING: first_step}
        self._recent = deque([(first_step, 0.0)], maxlen=_RECENT_STEPS + 1)

    def add_step(self, step: int, training_seconds: float) -> None:
        """Record a completed step.

        Args:
            step: its number.
            training_seconds: since the start, excluding evaluations and checkpoints.
        """
        self._recent.append((step, training_seconds))

    def add_wait(self, kind: str, seconds: float) -> None:
        """Record how long the last evaluation or checkpoint took."""
        if kind in self._seconds:
            self._seconds[kind] = seconds
            self._waited_at[kind] = self._recent[-1][0]

    def seconds(self) -> float | None:
        """Remaining seconds after the last step; None before the first one."""
        (old_step, since), (step, now) = self._recent[0], self._recent[-1]
        if step == old_step:
            return None
        steps = (self._total - step) * (now - since) / (step - old_step)
        return steps + sum(self._left_of(kind, step) * self._seconds[kind] for kind in self._every)

    def _left_of(self, kind: str, step: int) -> int:
        """How many are still to come, including one at the end of the run."""
        every = self._every[kind]
        if every is None:
            return 0
        if every == 0:
            return 1
        if self._waited_at[kind] != step:
            step -= 1  # the one at this step is still to come
        return self._total // every - step // every + (1 if self._total % every else 0)


def clock(seconds: float) -> str:
    """`0:07`, `12:34`, `3:05:00`, `2 d 03:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
