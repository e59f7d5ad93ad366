"""How far a long preparation is, and how long it still takes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from sft.processes.terminal import open_live_line

logger = logging.getLogger("sft.data")
_SECONDS_TILL_SHOWN = 2.0
"""What is done sooner needs no word."""
_SECONDS_BETWEEN_LINES = 30.0


class PreparationProgress:
    """A line drawn anew on a terminal, a line of the log now and then elsewhere. Use as a context."""

    def __init__(self, what: str, on_progress: Callable[[bool], None] | None = None):
        """Args:
        what: is prepared.
        on_progress: is told each time that some more is done, by True, and the end, by False.
        """
        self._what = what
        self._on_progress = on_progress or _told_to_nobody
        self._started = time.monotonic()
        self._told = self._started + _SECONDS_TILL_SHOWN
        self._bar = open_live_line(sys.stdout) if logger.isEnabledFor(logging.INFO) else None

    def __enter__(self) -> "PreparationProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._on_progress(False)
        if self._bar is not None:
            self._bar.clear()

    def show(self, rows: int, share: float) -> None:
        """Tells the state, if it is time to.

        Args:
            rows: rows prepared so far.
            share: of the whole source, between 0 and 1.
        """
        self._on_progress(True)
        now = time.monotonic()
        if now < self._told:
            return
        seconds = now - self._started
        line = progress_text(self._what, rows, share, seconds)
        if self._bar is not None:
            self._bar.show([line])
            self._told = now + 0.2
        else:
            logger.info(line)
            self._told = now + _SECONDS_BETWEEN_LINES


def _told_to_nobody(goes_on: bool) -> None:
    pass


def progress_text(what: str, rows: int, share: float, seconds: float) -> str:
    """`Preparing train rows: 40 %, 20,000 rows, 2,500 rows/s, about 12 s left`."""
    text = f"{what}: {share:.0%}, {rows:,} rows, {rows / max(seconds, 1e-9):,.0f} rows/s"
    if share > 0:
        left = seconds * (1 - share) / share
        text += f", about {left:.0f} s left" if left < 90 else f", about {left / 60:.0f} min left"
    return text
