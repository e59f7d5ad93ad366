"""Ctrl-C, SIGTERM and SIGUSR1: during training the step is finished and saved; at other times the run ends at once.

SLURM can send SIGUSR1 ahead of a time limit. The exit status of a run that a signal ended is 128 plus the signal's
number, as in a shell. A second signal ends the process at once, whatever it is doing: by `os._exit`, because an
exception could surface in any line of any library, and clean-up could hang.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, Timer
from types import FrameType
from typing import Any, ClassVar, Self

from sft.common.standard_streams import write_error
from sft.processes.environment import rank_of_this_process
from sft.processes.exit_records import record_exit

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
DELIVERED_TWICE_SECONDS = 2.0
"""Within this time a second signal counts as the first: a scheduler or a terminal may signal a launcher and its
children, and the launcher forwards it."""
UNHANDLED_SECONDS = 5.0
"""After this time the process is ended: clean-up takes too long, or the main thread is blocked in a library."""


class Interrupted(KeyboardInterrupt):
    """A signal arrived while there was no step to finish."""

    def __init__(self, number: int):
        super().__init__(signal_name(number))
        self.number = number
        self.exit_code = 128 + number


def signal_name(number: int) -> str:
    """For example `SIGTERM`."""
    return signal.Signals(number).name


class _SignalHandlers:
    """Handles the signals within the context, and restores the previous handlers after it.

    Python runs a handler in the main thread, between two bytecode instructions: not while a library waits there for
    another process. So a thread also receives each signal (`signal.set_wakeup_fd`), for what must not wait.
    """

    _entered: ClassVar[list["_SignalHandlers"]] = []
    """Innermost last."""
    _is_fork_hook_set: ClassVar[bool] = False

    def __init__(self) -> None:
        self.number = 0
        """Of the first signal that arrived; 0 for none."""
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
            return self
        if not _SignalHandlers._is_fork_hook_set:
            os.register_at_fork(after_in_child=_reset_in_child)
            _SignalHandlers._is_fork_hook_set = True
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
        """Reaction to the first signal, in the handler."""

    def _watch(self, reader: int) -> None:
        first_at = None
        while numbers := os.read(reader, 1):
            number, now = numbers[0], time.monotonic()
            if number not in SIGNALS or signal.getsignal(number) != self._on_signal:
                continue  # torchrun's agent sets its own handlers
            if first_at is None:
                first_at = now
                self._watch_first(number)
            elif now - first_at > DELIVERED_TWICE_SECONDS:
                _exit_now(number, "Ended at once by a second signal.")
        os.close(reader)

    def _watch_first(self, number: int) -> None:
        """Reaction to the first signal, in the thread."""


class StopRequest(_SignalHandlers):
    """Records that a signal requested the end of the run. The trainer checks it after each step."""

    @property
    def requested(self) -> bool:
        return self.number != 0


class InterruptOnSignal(_SignalHandlers):
    """Ends the run: there is no step to finish, and preparation can be repeated.

    Within `raised` by an exception, elsewhere directly. Directly too in a finalizer or a weak reference's callback
    (importlib has those), where Python only prints an exception and continues.
    """

    _is_raised = False

    def __enter__(self) -> Self:
        self._old_hook = sys.unraisablehook
        super().__enter__()
        if self._old_handlers:
            sys.unraisablehook = self._on_unraisable
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self._old_hook
        super().__exit__(*error)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise `Interrupted` in this context; to be entered where that is caught."""
        self._is_raised = True
        try:
            yield
        finally:
            self._is_raised = False

    def _on_first(self, number: int) -> None:
        if not self._is_raised:
            _exit_now(number, f"Ended by {signal_name(number)}.")
        raise Interrupted(number)

    def _on_unraisable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        if isinstance(unraisable.exc_value, Interrupted):
            _exit_now(self.number, f"Ended by {signal_name(self.number)}.")
        self._old_hook(unraisable)

    def _watch_first(self, number: int) -> None:
        def exit_if_unhandled() -> None:
            if self in self._entered and signal.getsignal(number) == self._on_signal:
                _exit_now(number, f"Ended by {signal_name(number)}.")

        timer = Timer(UNHANDLED_SECONDS, exit_if_unhandled)
        timer.daemon = True
        timer.start()


def _reset_in_child() -> None:
    """In a forked child: the parent handles the signals, but SIGTERM ends the child."""
    if _SignalHandlers._entered:
        _SignalHandlers._entered.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in set(SIGNALS) - {signal.SIGTERM}:
            signal.signal(number, signal.SIG_IGN)


def _exit_now(number: int, line: str) -> None:
    """End this process, whatever it is doing."""
    status = 128 + number
    record_exit(status)
    if rank_of_this_process() == 0:
        sys.stdout.flush()
        # The cursor may be at the end of a line of progress.
        line = f"\n{line}" if os.isatty(2) else line
        write_error(f"{line} Checkpoints saved before are complete.\n")
    os._exit(status)


def ignore_signals(*, is_launched: bool) -> None:
    """Ignore the signals when the process is about to exit, so that they cause no traceback.

    Args:
        is_launched: whether a launcher waits for the exit status, and ends this process if it hangs. Otherwise a signal
            ends it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN if is_launched else signal.SIG_DFL)
