"""Standard input, output and error of a command: closed, full, or with a reader that has gone.

A command whose output is what it was called for ends when the output cannot be written (`write_product`,
`check_output`). Any other continues without it (`continue_without_output`). No write to these streams raises an error.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from sft.common.errors import UserError


class OutputLost(UserError):
    """Standard output cannot be written. If its reader has gone, as in `... | head`, that is no error."""

    def __init__(self, error: OSError) -> None:
        has_reader = error.errno != errno.EPIPE
        super().__init__(*([f"standard output: cannot be written ({error.strerror})."] if has_reader else []))
        self.exit_code = 2 if has_reader else 0


class GuardedOutput(io.FileIO):
    """A file whose writes never raise: after the first that fails, the rest goes to the null device."""

    def __init__(self, descriptor: int, *, problem: OSError | None = None) -> None:
        """
        Args:
            descriptor: of the open file; it stays open when this object is closed.
            problem: why it cannot be written, if that is known already.
        """
        super().__init__(descriptor, "w", closefd=False)
        self.problem = problem
        """Why it cannot be written; None while it can."""
        self.announced_as: str | None = None
        """Its name in the line on standard error when the first write fails; None: no line."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        rest = view
        while rest:
            try:
                written = super().write(rest)
            except OSError as error:
                self._replace(error)
                break
            if written is None:  # not blocking, and full
                select.select([], [self.fileno()], [])
            else:
                rest = rest[written:]
        return len(view)

    def _replace(self, error: OSError) -> None:
        """Connect the descriptor with the null device: what libraries write to it must not fail either."""
        self.problem = error
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
        if self.announced_as is not None:
            reason = "closed by its reader" if error.errno == errno.EPIPE else error.strerror
            write_error(f"{self.announced_as} cannot be written ({reason}): this command continues without it.\n")


def guard_standard_streams() -> None:
    """Make the standard streams safe to use. To be called by an entry, before it opens any file.

    A file that is opened while a standard stream is closed would get that stream's descriptor, and receive what is
    written to the stream.
    """
    is_closed = [_open_if_closed(descriptor) for descriptor in range(3)]
    if is_closed[0]:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdout = _guarded(sys.stdout, 1, is_closed=is_closed[1])
    sys.stderr = _guarded(sys.stderr, 2, is_closed=is_closed[2])
    if is_closed[2]:
        sys.__stderr__ = sys.stderr  # type: ignore[misc, assignment]  # for faulthandler


def _open_if_closed(descriptor: int) -> bool:
    """Connect a closed descriptor with the null device, all lower ones being open. Returns whether it was closed."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, True)
        return True
    return False


def _guarded(stream: TextIO | None, descriptor: int, *, is_closed: bool) -> TextIO:
    """The stream over a `GuardedOutput`. Characters that its encoding lacks are written as escapes."""
    if is_closed or stream is None:
        raw = GuardedOutput(descriptor, problem=OSError(errno.EBADF, "it is closed"))
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")
    is_windows_console = os.name == "nt" and stream.isatty()
    if is_windows_console or not isinstance(stream, io.TextIOWrapper) or stream.fileno() != descriptor:
        return stream
    raw = GuardedOutput(descriptor)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # as Python itself does
        encoding=stream.encoding,
        errors="backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _raw(stream: TextIO | None) -> GuardedOutput | None:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, GuardedOutput) else None


def continue_without_output() -> None:
    """If standard output fails from now on, write one line to standard error."""
    if (raw := _raw(sys.stdout)) is not None:
        raw.announced_as = "Standard output"


def write_product(text: str) -> None:
    """Write to standard output what the command was called for.

    Raises:
        OutputLost: if it cannot be written.
    """
    sys.stdout.write(text)
    check_output()


def check_output() -> None:
    """Flush standard output.

    Raises:
        OutputLost: if it cannot be written.
    """
    sys.stdout.flush()
    raw = _raw(sys.stdout)
    if raw is not None and raw.problem is not None:
        raise OutputLost(raw.problem)


def write_error(text: str) -> None:
    """Write to standard error at once: from a signal handler, or while a thread that hangs may hold the streams."""
    with suppress(OSError):
        os.write(2, text.encode("utf-8", "backslashreplace"))
