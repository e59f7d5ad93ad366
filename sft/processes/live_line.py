"""One line of progress below everything else that is written to a terminal, drawn by rich.

Imported only where standard output is such a terminal (see `sft.processes.terminal`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sft.common.text import columns
from sft.processes.output import safe_line

_DEFAULT_WIDTH = 80
_MIN_TABLE, _INDENT = 20, "  "
"""Columns that a table takes at least, so that none of its cells disappears, and what precedes its lines."""


class LiveLine:
    """A line of progress that is redrawn in place. The log and other output appear above it.

    The cursor stays visible: a process that is killed must leave the terminal usable.
    """

    def __init__(self, stream: TextIO, *, width: int | None = None, redirects: bool = False):
        """
        Args:
            stream: the terminal.
            width: columns; default: those of the terminal, read again whenever the line is drawn.
            redirects: while the line is shown, what is written to `sys.stdout` (and to `sys.stderr`, if that is a
                terminal) appears above it.
        """
        self._console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._stream, self._width = stream, width
        self._redirects = redirects
        self._live: Live | None = None
        self._shown = ""

    @property
    def columns(self) -> int:
        """The terminal's width now. rich prefers `COLUMNS`, which may be that of another terminal."""
        if self._width is not None:
            return self._width
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_WIDTH
        except (OSError, ValueError):  # not a real terminal
            return _DEFAULT_WIDTH

    def start(self) -> Live:
        """Start drawing; `show` does so too."""
        if self._live is None:
            self._live = Live(
                Text(""),
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=self._redirects,
                redirect_stderr=self._redirects and sys.stderr.isatty(),
            )
            self._live.start()
            self._console.show_cursor(True)
        return self._live

    def show(self, parts: Sequence[str]) -> None:
        """Redraw the line.

        Args:
            parts: the most important first; those that do not fit into the terminal's width are omitted.
        """
        self._console.width = self.columns
        line = fitted(parts, self._console.width - 1)
        if line == self._shown:
            return
        self._shown = line
        self.start().update(Text(line, no_wrap=True, overflow="crop"), refresh=True)

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1
    ) -> list[str]:
        """The lines of a table as text without colour, at most as wide as the terminal.

        Args:
            title: the line above it; without one if empty.
            header: names of the columns; without a header if all are empty.
            rows: cells by row.
            text_columns: the first columns, which are left-aligned; the others are right-aligned.
        """
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=any(header))
        for number, name in enumerate(header):
            justify: Literal["left", "right"] = "left" if number < text_columns else "right"
            table.add_column(Text(safe_line(name)), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(Text(safe_line(cell)) for cell in row))
        # Of the same stream: its encoding decides which characters draw the line below the header.
        console = Console(file=self._stream, width=max(self.columns, _MIN_TABLE) - len(_INDENT), color_system=None)
        with console.capture() as captured:
            console.print(table)
        lines = [f"{_INDENT}{line}".rstrip() for line in captured.get().splitlines()]
        return [safe_line(title), *lines] if title else lines

    def clear(self) -> None:
        """Erase the line and end the redirection."""
        if self._live is not None:
            self._live.stop()
        self._live, self._shown = None, ""


def fitted(parts: Sequence[str], width: int) -> str:
    """As many of the first parts as fit side by side; the first part is truncated if it does not fit alone.

    Characters that would act on the terminal are written out (`\\x1b`).
    """
    line = safe_line(parts[0])[: max(width, 0)] if parts else ""
    for part in map(safe_line, parts[1:]):
        if columns(line) + 2 + columns(part) <= width:
            line += f"  {part}"
    return line
