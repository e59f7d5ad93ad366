"""Signals during start-up, before there is a run to stop.

Imports almost nothing, so that it can be imported before everything else.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from sft.common.standard_streams import write_error

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


def exit_on_signals() -> None:
    """Make a signal end this process with one line and status 128 + its number, until other handlers are set."""
    for name in _NAMES:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _exit)


def restore_default_handlers() -> None:
    """Restore Python's handlers, with which Ctrl-C raises KeyboardInterrupt."""
    for name in _NAMES:
        if hasattr(signal, name):
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(getattr(signal, name), default)


def _exit(number: int, frame: FrameType | None) -> None:
    """Exit without an exception: raised within an import, it could be mistaken for a missing package."""
    if os.environ.get("RANK", "0") == "0":
        write_error(f"Ended by {signal.Signals(number).name} during start-up.\n")
    os._exit(128 + number)
