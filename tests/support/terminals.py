"""Pseudo-terminals: commands and functions that write to one, and what it shows in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from tests.support.paths import REPOSITORY

UP, ERASE, HIDE, SHOW = "\x1b[1A", "\x1b[2K", "\x1b[?25l", "\x1b[?25h"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def screen_of(output: str) -> list[str]:
    """The lines that a terminal shows in the end: moves of the cursor and erased lines are applied."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[\??\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", COLOUR.sub("", output).replace("\r\n", "\n")):
        if piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\r":
            column = 0
        elif piece == UP:
            row -= 1
        elif piece == ERASE:
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return lines


def table_below(output: str, title: str) -> list[str]:
    """The lines of a table that was drawn below a title, with the title."""
    screen = screen_of(output)
    start = screen.index(title)
    rule = next(index for index in range(start, len(screen)) if screen[index].startswith("  ─"))
    end = next((index for index in range(rule, len(screen)) if not screen[index].startswith("  ")), len(screen))
    return screen[start:end]


def run_on_terminal(*arguments: str, width: int, interrupt_at: bytes | None = None) -> tuple[int, str, bool]:
    """Exit status, all that was written, and whether the terminal's modes are as they were."""
    ours, theirs = _open(width)
    modes = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "sft_main.py", *arguments],
        cwd=REPOSITORY,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    written, deadline = b"", time.monotonic() + 300
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            written += os.read(ours, 65536)
        elif process.poll() is not None:
            break
        if interrupt_at is not None and interrupt_at in written:
            os.write(ours, b"\x03")  # as the key: the terminal makes a signal of it
            interrupt_at = None
    same = termios.tcgetattr(theirs) == modes
    os.close(ours)
    os.close(theirs)
    return process.wait(timeout=10), written.decode(), same


@dataclass(slots=True)
class Written:
    """What was written to a terminal; complete once it is closed."""

    text: str = ""


@contextmanager
def terminal_as_stdout(width: int, **environment: str) -> Iterator[Written]:
    """A pseudo-terminal as `sys.stdout` of this process, with `TERM=xterm` and more environment variables."""
    ours, theirs = _open(width)
    written, pieces = Written(), []

    def read() -> None:
        while True:
            try:
                pieces.append(os.read(ours, 65536))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with (
            open(theirs, "w", encoding="utf-8") as stream,
            patch.dict(os.environ, {"NO_COLOR": "", "TERM": "xterm", **environment}),
            patch.object(sys, "stdout", stream),
        ):
            yield written
    finally:
        reader.join()
        os.close(ours)
        written.text = b"".join(pieces).decode()


def _open(width: int) -> tuple[int, int]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    return ours, theirs
