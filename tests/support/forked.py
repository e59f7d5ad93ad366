"""The command in forked processes: libraries are imported once, so that some hundred disturbed runs take minutes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.parts import REPOSITORY

# For the server that forks, which is started with the first run. Threads would not live through a fork.
os.environ["PYTHONPATH"] = str(REPOSITORY)
os.environ["OMP_NUM_THREADS"] = "1"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "sft_main",
        "transformers.trainer",
        "data_handler",
        "trainer_utils",
        "sft.training.batch_size_trials",
        "sft.training.dry_run",
        "sft.training.results",
    ]
)


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a run: its exit status (minus the signal's number where one ended it), and what it wrote."""

    status: int
    out: str
    err: str


def run(folder: Path, *arguments: str, fault: Callable[[], Any] | None = None, seconds: float = 600) -> Ended:
    """Runs the command in a process of its own.

    Args:
        folder: for what it writes to the terminal.
        arguments: of the command.
        fault: is called in that process before the command starts; it can be pickled.
        seconds: it may take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = _FORKS.Process(target=_child, args=(arguments, folder, fault))
    process.start()
    process.join(seconds)
    out, err = ((folder / name).read_text() for name in _FILES)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"still running after {seconds} s:\n{out}\n{err}")
    return Ended(process.exitcode, out, err)


_FILES = ("stdout.txt", "stderr.txt")


def _child(arguments: tuple[str, ...], folder: Path, fault: Callable[[], Any] | None) -> None:
    for descriptor, name in enumerate(_FILES, start=1):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(REPOSITORY)
    import sft_main

    if fault is not None:
        fault()
    sys.exit(sft_main.main(arguments))
