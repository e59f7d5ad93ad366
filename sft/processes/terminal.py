"""The terminal of a run: whether there is one to draw on, and the log above its line of progress."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from sft.processes.logs import LOG_FILES, STANDARD_OUTPUT

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line: not if `TERM` is `dumb` or, except on Windows, unset."""
    return stream.isatty() and os.environ.get("TERM", "" if os.name == "nt" else "dumb") != "dumb"


def can_colour(stream: TextIO) -> bool:
    """Whether colours may be written to a stream: not if `NO_COLOR` is set (https://no-color.org)."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def open_live_line(stream: TextIO, *, redirects: bool = False) -> LiveLine | None:
    """A line of progress, and tables, on a terminal; None where the stream is no terminal that can draw.

    Args:
        stream: standard output.
        redirects: see `LiveLine`.
    """
    if not can_draw(stream):
        return None
    from sft.processes.live_line import LiveLine  # imports rich, which is needed only on a terminal

    return LiveLine(stream, redirects=redirects)


def log_drawn(logger: logging.Logger, plain: Sequence[str], drawn: Sequence[str] | None) -> None:
    """Log lines that look different on a terminal.

    Args:
        logger: a logger of ours.
        plain: for log files, and for standard output if that is no terminal.
        drawn: for the terminal, with everything from outside written out; None if standard output is none.
    """
    for line in plain:
        logger.info(line, extra={} if drawn is None else {"only_in": LOG_FILES})
    for line in drawn or ():
        logger.info(line, extra={"only_in": STANDARD_OUTPUT, "is_coloured": True})


@contextmanager
def live_terminal() -> Iterator[LiveLine | None]:
    """A line of progress below everything that is written in the context; None where there is no terminal.

    The log's lines of progress (`extra={"is_progress": True}`) then go only to log files, not to the terminal.
    """
    root, out = logging.getLogger("sft"), sys.stdout
    handlers = (each for each in root.handlers if isinstance(each, logging.StreamHandler))
    handler = next((each for each in handlers if each.stream is out), None)
    line = open_live_line(out, redirects=True) if root.isEnabledFor(logging.INFO) else None
    if handler is None or line is None:
        yield None
        return
    line.start()
    handler.setStream(sys.stdout)  # the redirected one
    handler.addFilter(_is_no_progress)
    try:
        yield line
    finally:
        handler.removeFilter(_is_no_progress)
        handler.setStream(out)
        line.clear()


def _is_no_progress(record: logging.LogRecord) -> bool:
    return not getattr(record, "is_progress", False)
