"""Signals in a process's first moments, before there is anything that could be asked to stop.

Imports next to nothing, so that it can come before all other imports.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


def leave_on_signals() -> None:
    """Has a signal end this process with one line and status 128 + its number, until others see to signals."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)


def stop_leaving_on_signals() -> None:
    """Gives the signals back to Python, where Ctrl-C is a KeyboardInterrupt that somebody waits for."""
    for name in _NAMES:
        if hasattr(signal, name):
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(getattr(signal, name), usual)


def _leave(number: int, frame: FrameType | None) -> None:
    """An exception could surface in any line of an import, and be taken for a missing package."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, f"Ended by {signal.Signals(number).name}, before anything was begun.\n".encode())
    os._exit(128 + number)
