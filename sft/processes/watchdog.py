"""A watchdog: a process that makes no progress writes its stacks and exits, and so do all that wait for it.

A Python thread watches. While a library holds the interpreter's lock, that thread cannot run, so it keeps resetting a
system timer: when the timer expires, a handler in C (faulthandler's) writes the stacks to standard error and lets the
signal end the process. The exit status is the same in both cases.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple, Self

from sft.common.files import open_new
from sft.common.standard_streams import write_error
from sft.common.text import printable
from sft.processes.exit_records import record_hang

SLOW = 4
"""Factor on the timeout for phases that may take long: a first step (layers are compiled), a save."""
TICK_SECONDS = 5.0
"""Seconds between two checks; less with short timeouts."""
HUNG_STATUS = 128 + 14
"""The exit status, that of a process that SIGALRM ended."""
_REPORT = "hang-rank-{}.txt"


class _Expected(NamedTuple):
    """What this process is doing, and how long that may take."""

    phase: str
    step: int | None
    seconds: float


class Watchdog:
    """Ends this process if it makes no progress for too long. A context manager; outside of it nothing is watched."""

    def __init__(self, timeout_seconds: float, *, rank: int, folder: str | Path):
        """
        Args:
            timeout_seconds: longest time without progress; 0 disables the watchdog.
            rank: of this process.
            folder: for the stacks, shared by all processes: a process that finds another's report there exits too.
        """
        self._timeout = timeout_seconds
        self._rank = rank
        self._folder = Path(folder)
        self._tick = min(TICK_SECONDS, timeout_seconds / 10)
        self._expected: _Expected | None = None
        self._ended = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        if self._timeout:
            if hasattr(faulthandler, "register") and sys.__stderr__ is not None:
                faulthandler.register(signal.SIGALRM, file=sys.__stderr__, all_threads=True, chain=True)
            # Listed here, not in the thread: later reports belong to this run.
            self._thread = Thread(target=self._watch, args=(self._reports(),), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            _set_timer(0)
            if hasattr(faulthandler, "unregister"):
                faulthandler.unregister(signal.SIGALRM)
            self._thread = None

    def expect(self, phase: str, step: int | None = None, *, patience: int = 1) -> None:
        """Report progress; the next is expected within the timeout.

        Args:
            phase: what starts now, for the message.
            step: of the run, if there is one.
            patience: factor on the timeout for phases that may take long.
        """
        self._expect(_Expected(phase, step, patience * self._timeout))

    def pause(self) -> None:
        """Expect nothing until the next `expect`: for phases without visible progress."""
        self._expect(None)

    def on_preparation(self, is_running: bool) -> None:
        """More rows were prepared; or this process has finished, and may wait for the others for any time."""
        if is_running:
            self.expect("preparing rows")
        else:
            self.pause()

    def _expect(self, expected: _Expected | None) -> None:
        self._expected = expected
        if self._thread is not None:  # the timer too, at once: the next call may keep the interpreter's lock
            self._set_timer(expected, 0.0)

    def _set_timer(self, expected: _Expected | None, waited: float) -> None:
        """Let the system's timer end this process a little later than the thread would."""
        _set_timer(0 if expected is None else expected.seconds - waited + 4 * self._tick)

    def _watch(self, known: Mapping[str, float]) -> None:
        before, waited, last = self._expected, 0.0, time.monotonic()
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            # At most two ticks: a process that was stopped for a while and then continues has not hung.
            elapsed, last = min(now - last, 2 * self._tick), now
            expected = self._expected
            waited = waited + elapsed if expected is before else 0.0
            before = expected
            if expected is not None and waited >= expected.seconds:
                self._exit(expected, f"no progress for {waited:,.0f} s", time.time())
            others = [changed for name, changed in self._reports().items() if known.get(name) != changed]
            if others:
                self._exit(expected, "another process has hung", min(others))
            self._set_timer(expected, waited)

    def _reports(self) -> dict[str, float]:
        """The reports in the folder, with the time of their last change in seconds since 1970."""
        found = {}
        with suppress(OSError):
            for path in self._folder.glob(_REPORT.format("*")):
                found[path.name] = path.stat().st_mtime
        return found

    def _exit(self, expected: _Expected | None, reason: str, found_at: float) -> None:
        """Write the stacks, give the other processes time to do so too, and end this process.

        A process that exited earlier would cause a traceback of a lost connection in the others.
        """
        _set_timer(0)
        step = f" {expected.step}" if expected and expected.step is not None else ""
        where = f"{expected.phase}{step}" if expected else "waiting"
        line = f"Rank {self._rank}, {where}: {reason} (hang_timeout_seconds: {self._timeout:g}); this process ends."
        path = self._folder / _REPORT.format(self._rank)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open_new(path) as file:
                file.write(f"{line}\n".encode())
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
            saved = f" Stacks: {path}."
        except OSError:
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
            saved = ""
        # Not with the logger: the thread that hangs may hold its lock.
        line = printable(f"{line}{saved} Resume from the last checkpoint with --resume_from_checkpoint auto.")
        write_error(f"{line}\n")
        record_hang(HUNG_STATUS)
        _end_workers(max(min(found_at + 2 * self._tick - time.time(), 2 * self._tick), 0))
        os._exit(HUNG_STATUS)


def _end_workers(seconds: float) -> None:
    """End the forked children, a loader's workers; one of them may be what hangs.

    They have inherited the handler: the signal makes them write their stacks to standard error.
    """
    workers = multiprocessing.active_children()
    for worker in workers:
        with suppress(OSError):
            if worker.pid is not None:
                os.kill(worker.pid, getattr(signal, "SIGALRM", signal.SIGTERM))
    time.sleep(seconds)
    for worker in workers:
        with suppress(OSError):
            worker.kill()


def _set_timer(seconds: float) -> None:
    """Set the system's timer; 0 stops it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
