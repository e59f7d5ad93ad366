"""Progress of a long preparation, with the time left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from sft.processes.terminal import open_live_line

logger = logging.getLogger("sft.data")
_SECONDS_BEFORE_SHOWN = 2.0
"""Shorter preparations show no progress."""
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_DRAWINGS = 0.2


class PreparationProgress:
    """Shows progress: a line redrawn on a terminal, or a log line now and then elsewhere. A context manager."""

    def __init__(self, description: str, on_progress: Callable[[bool], None] | None = None):
        """
        Args:
            description: What is being prepared, e.g. `Preparing train rows`.
            on_progress: Called with True whenever rows have been prepared, and with False at the end.
        """
        self._description = description
        self._on_progress = on_progress or (lambda is_running: None)
        self._started = time.monotonic()
        self._next_shown = self._started + _SECONDS_BEFORE_SHOWN
        self._bar = open_live_line(sys.stdout) if logger.isEnabledFor(logging.INFO) else None

    def __enter__(self) -> "PreparationProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._on_progress(False)
        if self._bar is not None:
            self._bar.clear()

    def show(self, rows: int, share: float) -> None:
        """Show the progress, if it is time to.

        Args:
            rows: Rows prepared so far.
            share: Share of the source read so far, between 0 and 1.
        """
        self._on_progress(True)
        now = time.monotonic()
        if now < self._next_shown:
            return
        line = progress_text(self._description, rows, share, now - self._started)
        if self._bar is not None:
            self._bar.show([line])
            self._next_shown = now + _SECONDS_BETWEEN_DRAWINGS
        else:
            logger.info(line)
            self._next_shown = now + _SECONDS_BETWEEN_LINES


def progress_text(description: str, rows: int, share: float, seconds: float) -> str:
    """`Preparing train rows: 40%, 20,000 rows, 2,500 rows/s, about 12 s left`."""
    text = f"{description}: {share:.0%}, {rows:,} rows, {rows / max(seconds, 1e-9):,.0f} rows/s"
    if share > 0:
        left = seconds * (1 - share) / share
        text += f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"
    return text
