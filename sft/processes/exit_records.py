"""Exit statuses and problems that processes record for our launcher, in files beside torchrun's error files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.common.files import write_text
from sft.processes.environment import (
    LAUNCHER_VARIABLE,
    is_launched,
    local_rank_of_this_process,
    num_processes_here,
    num_restarts,
    rank_of_this_process,
)
from sft.processes.output import print_errors

_EXITED, _HUNG = "left", "hung"
"""Suffixes of the files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitRecord:
    """How a process ended deliberately."""

    exit_status: int
    problems: tuple[str, ...] = ()
    """Lines for the user."""


def has_launcher() -> bool:
    """Whether our launcher started this process (not torchrun's command, or none)."""
    return bool(os.environ.get(LAUNCHER_VARIABLE)) and is_launched()


def record_exit(status: int, problems: Sequence[str] = ()) -> bool:
    """Record for our launcher, if it started this process, that this process exits deliberately.

    Returns:
        Whether another process has already recorded a problem, which then is why this one was ended.
    """
    if not has_launcher():
        return False
    folder = _error_file().parents[1]
    is_reported = any(record.problems for record in read_exit_records(folder).values())
    _write(_EXITED, status, problems)
    return is_reported


def exit_status_of_another(seconds: float = 5) -> int | None:
    """The status of another process of this machine that exited deliberately; None if none did.

    Args:
        seconds: how long to wait: a process closes its connections when it exits, just after it recorded the status.
    """
    if not has_launcher():
        return None
    deadline = time.monotonic() + seconds
    while True:
        records = read_exit_records(_error_file().parents[1])
        records.pop(local_rank_of_this_process(), None)
        if records or time.monotonic() > deadline:
            return next((record.exit_status for record in records.values()), None)
        time.sleep(0.1)


def record_hang(status: int) -> None:
    """Record for our launcher, if it started this process, that a process of the run hangs: it then ends all."""
    if has_launcher():
        _write(_HUNG, status, ())


def exit_together(status: int) -> int:
    """The exit status for a process that exits together with all others, at the same point of the run.

    Our launcher reads the status from the record. torchrun's agent treats any status but 0 as a failure: it would end
    the processes that are a moment behind, and restart all of them if restarts are left.
    """
    record_exit(status)
    return 0 if has_launcher() else status


def read_exit_records(attempt: Path) -> dict[int, ExitRecord]:
    """The records of one attempt: local rank -> record.

    Args:
        attempt: the attempt's folder.
    """
    records = {}
    for path in sorted(attempt.glob(f"*/error.json.{_EXITED}")):
        document = json.loads(path.read_text(encoding="utf-8"))
        records[int(path.parent.name)] = ExitRecord(
            exit_status=document["exit_status"], problems=tuple(document["problems"])
        )
    return records


def num_hangs_recorded(folder: Path) -> int:
    """The number of processes that recorded a hang, in all attempts of a launch; `folder` is the launcher's."""
    return sum(1 for _ in folder.glob(f"*/attempt_*/*/error.json.{_HUNG}"))


def previous_final_exit() -> ExitRecord | None:
    """How the processes of the previous attempt exited, if restarting them would only repeat it; else None."""
    if not num_restarts() or not os.environ.get(LAUNCHER_VARIABLE):
        return None
    attempt = _error_file().parents[1]
    records = read_exit_records(attempt.parent / f"attempt_{num_restarts() - 1}").values()
    for record in records:
        if record.exit_status == 2:
            return record
    all_exited = len(records) == num_processes_here(0)
    return max(records, key=lambda record: record.exit_status) if all_exited else None


def print_problems(problems: Sequence[str]) -> None:
    """Write problems to standard error, a line each, once for all processes.

    The process that finds a problem first makes the launcher end the others, perhaps before rank 0 has printed it. So
    processes that our launcher started record it, and the launcher prints it.
    """
    if not problems:
        return  # an `OutputLost` whose reader has gone
    if has_launcher():
        record_exit(2, problems)
    elif rank_of_this_process() == 0:
        print_errors(problems)


def _error_file() -> Path:
    return Path(os.environ["TORCHELASTIC_ERROR_FILE"])


def _write(suffix: str, status: int, problems: Sequence[str]) -> None:
    document = json.dumps({"exit_status": status, "problems": list(problems)})
    write_text(f"{_error_file()}.{suffix}", document)  # at once: the other processes read it too
