"""Several runs of the command, one after the other, in the same processes and process group; some with faults."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from tests.support import forked
from tests.support.checkpoints import as_if_killed
from tests.support.in_process import run_command


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One run of the command, and the faults injected into it."""

    arguments: list[str]
    bad_micro_batch: int = 0
    """On the last process the loss of this micro-batch is NaN, counted from 1; 0 for none."""
    stop_after: int = 0
    """The last process gets SIGTERM after this step; 0 for none."""
    killed: tuple[Path, int] | None = None
    """(folder of a run, step): start from a copy of it as if killed after the step."""


def run_in_turn(turns: list[Turn], folder: Path, *, processes: int = 2) -> tuple[list[int], str]:
    """Run the turns; returns their exit statuses, and their standard output.

    Args:
        turns: one after the other.
        folder: for files that the processes exchange.
        processes: their number.
    """
    statuses = folder / f"statuses-{processes}.json"
    ended = forked.call(folder / f"terminal-{processes}", _run_all, turns, statuses, processes=processes)
    assert (ended.status, ended.err) == (0, ""), ended.out + ended.err
    return json.loads(statuses.read_text()), ended.out


def _run_all(turns: list[Turn], statuses: Path) -> None:
    rank = int(os.environ["RANK"])
    is_last = rank == int(os.environ["WORLD_SIZE"]) - 1
    found = []
    for turn in turns:
        output = Path(next(word.partition("=")[2] for word in turn.arguments if word.startswith("--output_dir=")))
        if turn.stop_after and is_last:
            Thread(target=_stop_after, args=(turn.stop_after, output / "metrics.jsonl"), daemon=True).start()
        if turn.killed is not None:
            if rank == 0:
                as_if_killed(turn.killed[0], output, turn.killed[1])
            torch.distributed.barrier()
        with _bad_micro_batch(turn.bad_micro_batch if is_last else 0):
            found.append(run_command(turn.arguments))
    if rank == 0:
        statuses.write_text(json.dumps(found))


@contextmanager
def _bad_micro_batch(number: int) -> Iterator[None]:
    """The loss of the `number`-th micro-batch is NaN; 0 for none."""
    from sft.modeling.output_layer import OutputLayer

    original, calls = OutputLayer.loss_sum, []

    def loss_sum(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        total = original(*args, **kwargs)
        return total * float("nan") if len(calls) == number else total

    OutputLayer.loss_sum = loss_sum
    try:
        yield
    finally:
        OutputLayer.loss_sum = original


def _stop_after(step: int, metrics: Path) -> None:
    """Send SIGTERM to this process once a step is in `metrics.jsonl`."""
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
