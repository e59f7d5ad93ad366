"""A terminal while something runs: lines of the log, and below them one line of progress that is drawn anew.

Only where standard output is a terminal that can do that; elsewhere the log's lines are all there is.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from sft.common.terminal import can_draw
from sft.common.text import columns, printable

_ERASE = "\r\x1b[K"
_DEFAULT_WIDTH = 80


class LiveLine:
    """A stream for the log that keeps a line of progress below what is written to it."""

    def __init__(self, stream: TextIO, width: Callable[[], int] | None = None):
        """Args:
        stream: the terminal.
        width: its columns, asked at each drawing, since windows change; default: as the system says.
        """
        self._stream = stream
        self._width = width or (lambda: _columns_of(stream))
        self._shown = ""
        self._is_at_line_start = True

    def show(self, parts: Sequence[str]) -> None:
        """Draws the line of progress anew.

        Args:
            parts: the most important first; those that the terminal has no room for are left out.
        """
        line = fitted(parts, self._width() - 1)  # a full line would wrap, and could not be taken back
        if line == self._shown or not self._is_at_line_start:
            return
        # Over the old one, then what is left of it is erased: so nothing flickers.
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()
        self._shown = line

    def clear(self) -> None:
        """Takes the line of progress away."""
        if self._shown:
            self._stream.write(_ERASE)
            self._stream.flush()
        self._shown = ""

    def write(self, text: str) -> int:
        """Writes above the line of progress."""
        return self.write_to(self._stream, text)

    def write_to(self, stream: TextIO, text: str) -> int:
        """Writes to another stream of the same terminal, above the line of progress."""
        if not text:
            return 0
        self._is_at_line_start = text.endswith("\n")
        below = self._shown if self._is_at_line_start else ""
        above = _ERASE if self._shown else ""
        if stream is self._stream:
            stream.write(f"{above}{text}{below}")  # at once: nothing flickers
        else:
            self._stream.write(above)
            self._stream.flush()
            stream.write(text)
            stream.flush()
            self._stream.write(below)
        self._stream.flush()
        self._shown = below
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Above:
    """Another stream of the same terminal."""

    def __init__(self, line: LiveLine, stream: TextIO):
        self._line, self._stream = line, stream

    def write(self, text: str) -> int:
        return self._line.write_to(self._stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def live_terminal() -> Iterator[LiveLine | None]:
    """A line of progress below all that is written while this lasts; None where there is no terminal to draw on.

    The log's lines of progress (`extra={"is_progress": True}`) do not come to the terminal then, only to log files.
    """
    root = logging.getLogger("sft")
    handler = next((each for each in root.handlers if getattr(each, "stream", None) is sys.stdout), None)
    if handler is None or not root.isEnabledFor(logging.INFO) or not can_draw(sys.stdout):
        yield None
        return
    line = LiveLine(sys.stdout)
    out, err = sys.stdout, sys.stderr
    handler.setStream(line)
    handler.addFilter(_is_no_progress)
    sys.stdout = line
    if err.isatty():
        sys.stderr = _Above(line, err)
    try:
        yield line
    finally:
        line.clear()
        sys.stdout, sys.stderr = out, err
        handler.removeFilter(_is_no_progress)
        handler.setStream(out)


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the first parts as there is room for, side by side; the first is cut where even it is too long."""
    line = printable(parts[0])[: max(width, 0)] if parts else ""
    for part in map(printable, parts[1:]):
        if columns(line) + 2 + columns(part) <= width:
            line += f"  {part}"
    return line


def _is_no_progress(record: logging.LogRecord) -> bool:
    return not getattr(record, "is_progress", False)


def _columns_of(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH
    except (OSError, ValueError):
        return _DEFAULT_WIDTH
