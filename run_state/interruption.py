"""Ctrl-C and SIGTERM: finish the step, save, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import time
from types import FrameType

DELIVERED_TWICE_SECONDS = 2.0
"""A terminal sends Ctrl-C to a launcher and its children, and the launcher passes it on: that is one wish, not two."""


class StopRequest:
    """Remembers that a signal asked for the end. Use as a context: the old handlers come back after it."""

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._old_handlers: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self._requested_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._requested_at > DELIVERED_TWICE_SECONDS:
            raise KeyboardInterrupt
