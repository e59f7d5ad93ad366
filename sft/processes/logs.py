"""One log for all processes; one file for each rank."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from sft.common.errors import ConfigError, UserError
from sft.processes.environment import rank_of_this_process


def configure_logging(stream: TextIO | None = None) -> None:
    """One log for all processes: the first one writes, the others only what is an error.

    Args:
        stream: where to; None: standard output.
    """
    root = logging.getLogger("sft")
    root.handlers.clear()
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.INFO if rank_of_this_process() == 0 else logging.CRITICAL)


@contextmanager
def rank_log(log_dir: str | None) -> Iterator[None]:
    """Keeps this process's log in a file of its own too while it lasts, `rank-N.log`, with times; appended to.

    What the first rank writes still goes to the terminal; all that another one writes goes into its file alone.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if log_dir is None:
        yield
        return
    root, path = logging.getLogger("sft"), Path(log_dir, f"rank-{rank_of_this_process()}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"command line: --log_dir: {path} cannot be written: {error.strerror}.") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    if rank_of_this_process():
        root.handlers.clear()
        root.setLevel(logging.INFO)
        os.dup2(handler.stream.fileno(), 1)
        os.dup2(handler.stream.fileno(), 2)
    root.addHandler(handler)
    try:
        yield
    except UserError as error:
        handler.stream.write("\n".join(error.problems) + "\n")
        raise
    except Exception:
        if rank_of_this_process() == 0:  # the others' tracebacks come into their files by themselves
            handler.stream.write(traceback.format_exc())
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
