"""The one boundary around files that others made: whatever a library raises about one becomes a line with its name.

Models, tokenizers, templates, checkpoints and records come from other programs and other versions, and a library that
reads them fails in its own way: `KeyError`, `AttributeError`, `RecursionError`, a plain `Exception`. The boundary
encloses the library's call and nothing of ours, so that our own bugs keep their traceback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.common.device_errors import is_device_error
from sft.common.errors import UserError, one_line
from sft.common.files import special_kind
from sft.common.shapes import find_misfit, is_too_deep

_SELF_EXPLAINING = (OSError, ValueError, ImportError, RuntimeError)
"""Exceptions whose message is a sentence; of other classes the name is needed to understand it."""
MAX_DEPTH = 64
"""Levels of nesting of a record; deeper ones would end the recursion that compares and prints them."""


@contextmanager
def outside_file(
    problem: str, raises: type[UserError], explain: Callable[[Exception], str | None] | None = None
) -> Iterator[None]:
    """Turn any exception of a library about a file into one line: `problem: reason`.

    Our own errors pass through, and so do signals, memory that ran out and a device that failed, which say nothing
    about the file.

    Args:
        problem: the file and what is wrong with it: `x/config.json: cannot be read`.
        raises: class of the error.
        explain: a better line for an exception, if there is one.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_device_error(error):
            raise
        explained = explain(error) if explain is not None else None
        raise raises(explained or f"{problem}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """A library's exception in one line that can be understood without its traceback."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"it has no {one_line(error)}"
    text = one_line(error)
    name = type(error).__name__
    if isinstance(error, _SELF_EXPLAINING) or type(error) is Exception or text == name:
        return text
    return f"{name}: {text}"


def read_json(
    path: str | Path,
    raises: type[UserError],
    shape: Any = dict,
    *,
    name: str | None = None,
    parse: Callable[[str], Any] = json.loads,
) -> Any:
    """Read a record that another program or version may have written.

    Args:
        path: the file.
        raises: class of the error.
        shape: what it must contain (see `sft.common.shapes`).
        name: of the file in the error; the path by default.
        parse: reads its text, in another format than JSON.

    Raises:
        raises: if it cannot be read, is not JSON in UTF-8, is nested too deeply, or has another shape.
    """
    name = name or str(path)
    with outside_file(f"{name}: cannot be read", raises):
        document = parse(read_regular(path).decode("utf-8"))
        if is_too_deep(document, MAX_DEPTH):
            raise RecursionError
    check_shape(document, raises, shape, name)
    return document


def read_regular(path: str | Path) -> bytes:
    """The bytes of a regular file; for a call within `outside_file`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is a FIFO or a device, which might be waited for forever.
    """
    kind = special_kind(path)
    if kind is not None:
        raise ValueError(f"it is {kind}, not a regular file")
    return Path(path).read_bytes()


def check_shape(document: Any, raises: type[UserError], shape: Any, name: str) -> None:
    """Check that a record has the shape that its readers expect.

    Raises:
        raises: if it has another one, with the first key that does not fit.
    """
    misfit = find_misfit(document, shape)
    if misfit is not None:
        raise raises(f"{name}: {misfit}")
