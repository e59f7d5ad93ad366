"""The command in forked processes: libraries are imported once, so that a run of several processes takes a second."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.in_process import run_command
from tests.support.paths import REPOSITORY

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.support.preloaded"])
SECONDS_AFTER_FAILURE = 10
"""How long the other processes may run once one has failed."""
_FILES = ("stdout.txt", "stderr.txt")


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a run."""

    status: int
    """The exit status of the processes, minus the signal's number where one ended them. All have the same."""
    out: str
    err: str


def run(
    folder: Path,
    *arguments: str,
    processes: int = 1,
    fault: Callable[[], Any] | None = None,
    seconds: float = 100,
    cwd: Path = REPOSITORY,
) -> Ended:
    """Run the command in new processes, as torchrun starts them.

    Args:
        folder: for its output.
        arguments: of the command.
        processes: their number; a single one has no launcher.
        fault: is called in each process before the command starts; it can be pickled.
        seconds: the time limit.
        cwd: the working directory.
    """
    return call(folder, run_command, arguments, processes=processes, fault=fault, seconds=seconds, cwd=cwd)


def call(
    folder: Path,
    function: Callable[..., int | None],
    *arguments: Any,
    processes: int = 1,
    fault: Callable[[], Any] | None = None,
    seconds: float = 100,
    cwd: Path = REPOSITORY,
) -> Ended:
    """Call a function in new processes; its result is their exit status. Arguments as of `run`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).write_bytes(b"")
    launch = _launch(processes) if processes > 1 else [{}]
    started = [
        _FORKS.Process(target=_child, args=(function, arguments, folder, cwd, fault, {**os.environ, **own}))
        for own in launch
    ]
    for process in started:
        process.start()
    _wait(started, seconds)
    out, err = ((folder / name).read_text() for name in _FILES)
    statuses = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert None not in statuses, f"exit statuses {statuses}, where None is still running:\n{out}\n{err}"
    assert len(set(statuses)) == 1, f"exit statuses {statuses}:\n{out}\n{err}"
    return Ended(statuses[0], out, err)


def _wait(started: Sequence[BaseProcess], seconds: float) -> None:
    """Wait until all have ended; for a few seconds only once one has failed."""
    deadline = time.monotonic() + seconds
    while (running := [process for process in started if process.is_alive()]) and time.monotonic() < deadline:
        if any(process.exitcode for process in started):
            deadline = min(deadline, time.monotonic() + SECONDS_AFTER_FAILURE)
        wait([process.sentinel for process in running], max(deadline - time.monotonic(), 0))


def _launch(processes: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _child(
    function: Callable[..., int | None],
    arguments: tuple[Any, ...],
    folder: Path,
    cwd: Path,
    fault: Callable[[], Any] | None,
    environment: dict[str, str],
) -> None:
    for descriptor, name in enumerate(_FILES, start=1):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()  # the server's is that of the first run
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    # Otherwise the loader's workers would come from a second server, which imports everything again.
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # its stubs lack None
    if fault is not None:
        fault()
    sys.exit(function(*arguments))
