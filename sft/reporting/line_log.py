"""A file of lines that a run appends to. A failure to write it never ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from sft.common.errors import UserError, one_line
from sft.common.files import append

logger = logging.getLogger("sft.train")


class LineLog:
    """Appends lines to a file. Those that cannot be written are kept, and written before the next ones."""

    def __init__(self, path: str | Path, check: Callable[[], None] | None = None):
        """
        Args:
            path: the file.
            check: raises a UserError while nothing must be written.
        """
        self.path = Path(path)
        self._check = check
        self._unwritten = ""
        self._problem: str | None = None

    def append(self, lines: str) -> None:
        """Append lines, each with its line break."""
        self._unwritten += lines
        try:
            if self._check is not None:
                self._check()
            append(self.path, self._unwritten)
        except (OSError, UserError) as error:
            problem = one_line(error)
            if problem != self._problem:
                logger.warning(
                    "%s cannot be written: %s. Training continues; the lines are kept in memory and written as soon "
                    "as possible.",
                    self.path,
                    problem,
                )
            self._problem = problem
        else:
            self._unwritten, self._problem = "", None
