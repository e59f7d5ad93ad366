"""What is written to a terminal or a log: without secrets, and with every control character written out.

Column names, file names, exceptions of libraries and arguments come from outside. The log, the errors and the tables
all pass through here.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sft.common.secrets import hide, looks_secret, secrets_in_arguments
from sft.common.text import printable, visible

_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_SHORTEST_SECRET = 8
"""Characters; shorter values of environment variables may be part of any word."""


def safe_line(text: str) -> str:
    """A text from outside on one line; line breaks in it are written out too."""
    return printable(hide_known(text))


def safe_text(text: str) -> str:
    """A text of several lines of our own."""
    return visible(hide_known(text))


def hide_known(text: str) -> str:
    """A text without secrets, those in environment variables of this process included. Records are masked by it too."""
    return hide(text, _environment_secrets())


def arguments_without_secrets() -> list[str]:
    """`sys.argv` without secrets."""
    known = [*secrets_in_arguments(sys.argv[1:]), *_environment_secrets()]
    return [hide(argument, known) for argument in sys.argv]


def print_line(line: str) -> None:
    """Print one line to standard output."""
    print(safe_line(line))


def print_errors(lines: Sequence[str]) -> None:
    """Print lines to standard error, together."""
    sys.stderr.write("".join(f"{safe_line(line)}\n" for line in lines))


def ask(question: str) -> str:
    """Ask on the terminal."""
    return input(safe_line(question))


def show_crashes_safely() -> None:
    """Let tracebacks of uncaught exceptions, and Python's warnings, pass through here too."""
    sys.excepthook = _print_traceback
    warnings.showwarning = _print_warning


class SafeFormatter(logging.Formatter):
    """Formats each record as one line; the traceback of an exception follows on lines of its own.

    A record with `extra={"is_coloured": True}` may change colours: its text from outside is escaped already.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of the record."""
        line = super().formatMessage(record)
        if not getattr(record, "is_coloured", False):
            return safe_line(line)
        return "".join(part if _COLOUR.fullmatch(part) else safe_line(part) for part in _COLOUR.split(line))

    def formatException(self, exception: Any) -> str:
        """The traceback."""
        return safe_text(super().formatException(exception))


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(safe_text("".join(traceback.format_exception(kind, error, trace))))


def _print_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    (file or sys.stderr).write(safe_text(warnings.formatwarning(message, category, filename, lineno, line)))


def _environment_secrets() -> list[str]:
    values = [value for name, value in os.environ.items() if looks_secret(name)]
    return [value for value in values if len(value) >= _SHORTEST_SECRET and not value.startswith("/")]  # not a path
