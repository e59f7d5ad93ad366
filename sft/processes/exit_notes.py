"""Exit statuses and problems that processes hand to our launcher."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sft.processes.environment import (
    LAUNCHER_VARIABLE,
    is_launched,
    num_processes_here,
    num_restarts,
    rank_of_this_process,
)


def leave_word(status: int, problems: Sequence[str] = (), *, kind: str = "left") -> bool:
    """Tells our launcher, where it started this process, that it leaves by its own will, with what exit status.

    Or, with the kind `hung`, that a process of the run hangs: the launcher then ends all.
    Returns whether another process has already left a problem there, and so is why this one was ended.
    """
    if not (os.environ.get(LAUNCHER_VARIABLE) and is_launched()):
        return False
    file = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    is_told = any(lines for _, lines in words_left(file.parents[1]).values())
    word = json.dumps({"exit_status": status, "problems": list(problems)})
    Path(f"{file}.{kind}").write_text(word, encoding="utf-8")
    return is_told


def leave_with_the_others(status: int) -> int:
    """The exit status for a process that leaves together with all others, at the same place of the run.

    Our launcher learns of it by a word. For torchrun's agent a status other than 0 is a failure: it would end the
    processes that are a moment behind, and start all of them again where restarts are left.
    """
    leave_word(status)
    return 0 if os.environ.get(LAUNCHER_VARIABLE) and is_launched() else status


def words_left(attempt: Path) -> dict[int, tuple[int, list[str]]]:
    """What processes said on leaving: local rank -> exit status, lines for the user. Of an attempt, by its folder."""
    words = {}
    for path in sorted(attempt.glob("*/error.json.left")):
        word = json.loads(path.read_text(encoding="utf-8"))
        words[int(path.parent.name)] = (word["exit_status"], word["problems"])
    return words


def settled_before() -> tuple[int, list[str]] | None:
    """What made the processes of the attempt before leave, if starting them again would only repeat it."""
    if not num_restarts() or not os.environ.get(LAUNCHER_VARIABLE):
        return None
    attempt = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1]
    words = words_left(attempt.parent / f"attempt_{num_restarts() - 1}")
    for status, problems in words.values():
        if status == 2:
            return status, problems
    everyone_left = len(words) == num_processes_here(0)
    return max(words.values()) if everyone_left else None


def tell_problems(problems: Sequence[str]) -> None:
    """Writes what is wrong to standard error, a line each, once for all processes.

    Whichever process finds it first ends the others, the first one perhaps before it can say a word. So processes that
    our launcher started leave it with the launcher.
    """
    if os.environ.get(LAUNCHER_VARIABLE) and is_launched():
        leave_word(2, problems)
    elif rank_of_this_process() == 0:
        sys.stderr.write("\n".join(problems) + "\n")
