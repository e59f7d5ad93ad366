"""The log: one for all processes, and one file per rank on request."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedWriter, TextIOWrapper
from pathlib import Path
from typing import TextIO

from sft.common.errors import ConfigError, UserError
from sft.common.files import open_to_append
from sft.common.standard_streams import GuardedOutput
from sft.processes.environment import rank_of_this_process
from sft.processes.output import SafeFormatter, safe_line, safe_text, show_crashes_safely

STANDARD_OUTPUT, LOG_FILES = "standard output", "log files"
"""Where a record is written that has `extra={"only_in": ...}`."""


def configure_logging(stream: TextIO | None = None) -> None:
    """Set up the log: rank 0 writes it, the other ranks only errors.

    Args:
        stream: default: standard output.
    """
    show_crashes_safely()
    root = logging.getLogger("sft")
    root.handlers.clear()
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(SafeFormatter("%(message)s"))
    handler.addFilter(_belongs_in(STANDARD_OUTPUT))
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.INFO if rank_of_this_process() == 0 else logging.CRITICAL)


def _belongs_in(place: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: getattr(record, "only_in", place) == place


@contextmanager
def rank_log(log_dir: str | None) -> Iterator[None]:
    """Also write this process's log to the file `rank-N.log`, with timestamps; the file is appended to.

    The output of rank 0 still goes to the terminal as well; everything another rank writes goes only to its file.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if log_dir is None:
        yield
        return
    root, path = logging.getLogger("sft"), Path(log_dir, f"rank-{rank_of_this_process()}.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_to_append(path)
    except OSError as error:
        raise ConfigError(f"command line: --log_dir: {path} cannot be written: {error.strerror}.") from None
    raw = GuardedOutput(descriptor)
    raw.announced_as = safe_line(str(path))
    file = TextIOWrapper(BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(file)
    handler.setFormatter(SafeFormatter("%(asctime)s %(message)s"))
    handler.addFilter(_belongs_in(LOG_FILES))
    if rank_of_this_process():
        root.handlers.clear()
        root.setLevel(logging.INFO)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    root.addHandler(handler)
    try:
        yield
    except UserError as error:
        file.writelines(f"{safe_line(problem)}\n" for problem in error.problems)
        raise
    except Exception:
        if rank_of_this_process() == 0:  # the other ranks' standard error is the file
            file.write(safe_text(traceback.format_exc()))
        raise
    finally:
        root.removeHandler(handler)
        file.close()
        os.close(descriptor)
