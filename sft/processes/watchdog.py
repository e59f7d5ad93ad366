"""A process that makes no progress any more: its stacks are written down, and it leaves, as do all that wait for it.

A thread of Python looks on. Where a library holds the interpreter's lock for good, that thread cannot run, so it winds
up a timer of the system behind it: when that runs out, a handler in C (faulthandler's) writes the stacks to standard
error and lets the signal end the process. Both ways a shell sees the same exit status.
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

from sft.processes.exit_notes import leave_word

SLOW = 4
"""Patience with what may rightly take long at a stretch: a first step (layers are compiled), a save."""
TICK_SECONDS = 5.0
"""How often is looked, at most; with short timeouts more often."""
HUNG_STATUS = 128 + 14
"""The exit status: as of a process that SIGALRM ended."""
_REPORT = "hang-rank-{}.txt"


class _Expected(NamedTuple):
    """What this process is at, and how long that may take."""

    phase: str
    step: int | None
    seconds: float


class Watchdog:
    """Ends this process where nothing moves on for too long. Use as a context; outside of it nothing is watched."""

    def __init__(self, timeout_seconds: float, *, rank: int, folder: str | Path):
        """Args:
        timeout_seconds: without progress; 0 watches nothing.
        rank: of this process.
        folder: for the stacks, common to all processes: who finds another's report there leaves too.
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
            # Listed here, not in the thread: reports from now on are of this run.
            self._thread = Thread(target=self._watch, args=(self._reports(),), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            _wind_up(0)
            if hasattr(faulthandler, "unregister"):
                faulthandler.unregister(signal.SIGALRM)
            self._thread = None

    def expect(self, phase: str, step: int | None = None, *, patience: int = 1) -> None:
        """Progress was made; the next is expected within the timeout.

        Args:
            phase: what comes now, for a person.
            step: of the run, where there is one.
            patience: times the timeout, for what may take long.
        """
        self._expected = _Expected(phase, step, patience * self._timeout)

    def rest(self) -> None:
        """Nothing is expected until further notice: what comes has no progress that could be seen."""
        self._expected = None

    def preparing(self, goes_on: bool) -> None:
        """Some more rows are prepared; or this process has done its part, and may wait for others without a limit."""
        if goes_on:
            self.expect("preparing rows")
        else:
            self.rest()

    def _watch(self, known: Mapping[str, float]) -> None:
        before, waited, last = self._expected, 0.0, time.monotonic()
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            # No more than two ticks: a process that was stopped for a while, and goes on, has not hung.
            elapsed, last = min(now - last, 2 * self._tick), now
            expected = self._expected
            waited = waited + elapsed if expected is before else 0.0
            before = expected
            if expected is not None and waited >= expected.seconds:
                self._leave(expected, f"no progress for {waited:,.0f} s", time.time())
            others = [changed for name, changed in self._reports().items() if known.get(name) != changed]
            if others:
                self._leave(expected, "another process has hung", min(others))
            _wind_up(0 if expected is None else expected.seconds - waited + 4 * self._tick)

    def _reports(self) -> dict[str, float]:
        """Reports that lie there, with the time of their last change, seconds since 1970."""
        found = {}
        with suppress(OSError):
            for path in self._folder.glob(_REPORT.format("*")):
                found[path.name] = path.stat().st_mtime
        return found

    def _leave(self, expected: _Expected | None, why: str, found_at: float) -> None:
        """Writes the stacks down, gives the others time to do so too, and ends this process as all end theirs.

        One that went before would leave the others with a lost connection, and a traceback of that.
        """
        _wind_up(0)
        step = f" {expected.step}" if expected and expected.step is not None else ""
        where = f"{expected.phase}{step}" if expected else "waiting"
        line = f"Rank {self._rank}, {where}: {why} (hang_timeout_seconds: {self._timeout:g}), so it ends."
        path = self._folder / _REPORT.format(self._rank)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as file:
                file.write(f"{line}\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
            told = f" Its stacks: {path}."
        except OSError:
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
            told = ""
        # Not by the logger: whoever hangs may hold its lock.
        os.write(2, f"{line}{told} Go on from the last checkpoint with --resume_from_checkpoint auto.\n".encode())
        leave_word(HUNG_STATUS, kind="hung")
        _end_workers(max(min(found_at + 2 * self._tick - time.time(), 2 * self._tick), 0))
        os._exit(HUNG_STATUS)


def _end_workers(seconds: float) -> None:
    """Ends the processes that this one forked, a loader's workers; what hangs may be one of them.

    They have inherited the handler: the signal makes them write their stacks to standard error.
    """
    workers = multiprocessing.active_children()
    for worker in workers:
        with suppress(OSError):
            os.kill(worker.pid, getattr(signal, "SIGALRM", signal.SIGTERM))
    time.sleep(seconds)
    for worker in workers:
        with suppress(OSError):
            worker.kill()


def _wind_up(seconds: float) -> None:
    """Sets the system's timer; 0 stops it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
