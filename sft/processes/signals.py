"""Ctrl-C, SIGTERM and SIGUSR1: while training they finish the step and save, elsewhere they end the run at once.

SIGUSR1 is what SLURM sends ahead of a time limit when it is asked to. A run that a signal ended leaves with 128 plus
the signal's number, as a shell says it. A second signal leaves at once, wherever the process is: by `os._exit`, because
an exception could surface in any line of any library, and clean-up could hang.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from threading import Thread, Timer
from types import FrameType
from typing import ClassVar, Self

from sft.processes.environment import rank_of_this_process
from sft.processes.exit_notes import leave_word

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
DELIVERED_TWICE_SECONDS = 2.0
"""A scheduler or a terminal may send a signal to a launcher and its children, and the launcher passes it on: that is
one wish, not two."""
UNHEARD_SECONDS = 5.0
"""For cleaning up, or if the main thread waits in a library for a process that will never come."""


class Interrupted(KeyboardInterrupt):
    """A signal came where there is no step to finish."""

    def __init__(self, number: int):
        super().__init__(signal_name(number))
        self.number = number
        self.exit_code = 128 + number


def signal_name(number: int) -> str:
    """As people write it: SIGTERM."""
    return signal.Signals(number).name


class _SignalHandlers:
    """Handles the signals while it is entered; the old handlers come back after it.

    Python runs a handler in the main thread, between two of its own instructions: not while a library waits there for
    another process. So a thread is told of each signal too (`signal.set_wakeup_fd`), for what must not wait.
    """

    _entered: ClassVar[list["_SignalHandlers"]] = []
    """Innermost last."""
    _knows_forks: ClassVar[bool] = False

    def __init__(self) -> None:
        self.number = 0
        """Of the first signal that came; 0 for none."""
        self._old_handlers: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
            return self
        if not _SignalHandlers._knows_forks:
            os.register_at_fork(after_in_child=_forget_in_child)
            _SignalHandlers._knows_forks = True
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        for number in SIGNALS:
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        Thread(target=self._watch, args=(reader,), daemon=True).start()
        self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._old_handlers:
            return
        self._entered.remove(self)
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)  # ends the thread

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = int(number)
            self._on_first(self.number)

    def _on_first(self, number: int) -> None:
        """What the first signal does, in the handler."""

    def _watch(self, reader: int) -> None:
        first_at = None
        while numbers := os.read(reader, 1):
            number, now = numbers[0], time.monotonic()
            if number not in SIGNALS or signal.getsignal(number) != self._on_signal:
                continue  # torchrun's agent has handlers of its own
            if first_at is None:
                first_at = now
                self._watch_first(number)
            elif now - first_at > DELIVERED_TWICE_SECONDS:
                _leave_now(number, "Left at once on a second signal.")
        os.close(reader)

    def _watch_first(self, number: int) -> None:
        """What the first signal does, in the thread."""


class StopRequest(_SignalHandlers):
    """Remembers that a signal asked for the end: whoever is in charge asks for it when a step is done."""

    @property
    def requested(self) -> bool:
        return self.number != 0


class LeaveAtOnce(_SignalHandlers):
    """Ends the run by an exception: there is no step to finish, and what was prepared can be prepared again.

    Where the handler happens to run inside a finalizer or a weak reference's callback (importlib has those), Python
    prints an exception and goes on: there it ends the process itself.
    """

    def __enter__(self) -> Self:
        super().__enter__()
        self._old_hook = sys.unraisablehook
        if self._old_handlers:
            sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._old_hook
        super().__exit__(*error)

    def _on_first(self, number: int) -> None:
        raise Interrupted(number)

    def _on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            _leave_now(self.number, f"Ended by {signal_name(self.number)}.")
        self._old_hook(unraisable)

    def _watch_first(self, number: int) -> None:
        def leave() -> None:
            if self in self._entered and signal.getsignal(number) == self._on_signal:
                _leave_now(number, f"Ended by {signal_name(number)}.")

        timer = Timer(UNHEARD_SECONDS, leave)
        timer.daemon = True
        timer.start()


def _forget_in_child() -> None:
    """In a process forked from this one: signals are the parent's affair, but what ends a process ends this one."""
    if _SignalHandlers._entered:
        _SignalHandlers._entered.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in set(SIGNALS) - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)


def _leave_now(number: int, line: str) -> None:
    """Ends this process, whatever it is doing."""
    status = 128 + number
    leave_word(status)
    if rank_of_this_process() == 0:
        sys.stdout.flush()
        # A line of progress may stand there.
        line = f"\n{line}" if os.isatty(2) else line
        os.write(2, f"{line} Checkpoints that were saved before are whole.\n".encode())
    os._exit(status)


def ignore_signals(*, is_launched: bool) -> None:
    """To be called when all is done and the process is about to end: a signal must not bring a traceback any more.

    Args:
        is_launched: a launcher waits for this process's own exit status, and ends it where it hangs.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if is_launched else signal.SIG_DFL)
