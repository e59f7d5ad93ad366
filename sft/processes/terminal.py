"""The terminal of a run: whether there is one to draw on, and the log above its line of progress."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line: not if `TERM` is `dumb` or, except on Windows, unset."""
    return stream.isatty() and os.environ.get("TERM", "" if os.name == "nt" else "dumb") != "dumb"


def open_live_line(stream: TextIO, *, redirects: bool = False) -> LiveLine | None:
    """A line of progress on a terminal; None where the stream is no terminal that can draw.

    Args:
        stream: standard output.
        redirects: see `LiveLine`.
    """
    if not can_draw(stream):
        return None
    from sft.processes.live_line import LiveLine  # imports rich, which is needed only on a terminal

    return LiveLine(stream, redirects=redirects)


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
