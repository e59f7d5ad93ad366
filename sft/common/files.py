"""Writing files so that no reader finds half of one and no link is followed; strict JSON; special files."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sft.common.errors import ConfigError, UserError, one_line

_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)
NOT_UTF8 = "the path {path!a} contains bytes that are not UTF-8, which model files cannot have. Rename the folder."
_INSTEAD = "Write its content to a file, and name that."


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(name: str) -> bool:
    """Whether a file is named by an address, `s3://bucket/rows.jsonl`, and not by a local path."""
    return _ADDRESS.match(name) is not None


def special_kind(path: str | Path) -> str | None:
    """What a path is if it is neither a regular file nor a folder: `a FIFO (named pipe)`; None for any other path.

    Reading one may wait forever, or never end. A path that cannot be inspected is not special: opening it reports why.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return next((kind for is_kind, kind in _SPECIAL if is_kind(mode)), None)


def special_file(*paths: str | Path) -> str | None:
    """What is wrong with the first special file among paths, as a complete line; None if there is none."""
    found = ((path, kind) for path in paths if (kind := special_kind(path)) is not None)
    return next((f"{path}: is {kind}; only regular files are read. {_INSTEAD}" for path, kind in found), None)


def refuse_special_files(raises: type[UserError], *paths: str | Path, name: str = "") -> None:
    """Refuse to read special files, such as a FIFO, which might be waited for forever.

    Args:
        raises: class of the error.
        paths: what would be read.
        name: of the setting, for the message; empty for none.

    Raises:
        raises: naming the first special file.
    """
    if (problem := special_file(*paths)) is not None:
        raise raises(f"{name}: {problem}" if name else problem)


def matching_paths(pattern: str, folder: str | None = None) -> Iterator[Path]:
    """The paths that match a glob, of which as many leading parts as exist are taken as they are.

    So a folder `[1]` may be named; `*`, `?` and `[` act only where there is nothing of that name.

    Args:
        pattern: a path, which may contain `*`, `?` and `[`.
        folder: the folder that a relative pattern starts from, taken as it is; None for the working directory.

    Raises:
        ValueError, NotImplementedError: if it is no valid glob.
    """
    base, parts = Path(folder or "."), Path(pattern).parts
    while parts and os.path.exists(base / parts[0]):
        base, parts = base / parts[0], parts[1:]
    return base.glob(str(Path(*parts))) if parts else iter([base])


@contextmanager
def long_names_refused() -> Iterator[None]:
    """Turn a name that the file system does not take into one line, whichever setting or option it is from.

    Raises:
        ConfigError: naming it.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ConfigError(
            f"{one_line(error.filename, 100)}: this name is too long for a file or folder. Shorten it."
        ) from error


def require_utf8(name: str, path: str | Path) -> None:
    """Refuse a path whose bytes are not UTF-8, where a library reads or writes files that does not accept one.

    Args:
        name: of the setting or option, for the message.
        path: the path.

    Raises:
        ConfigError: naming both.
    """
    if not is_utf8(path):
        raise ConfigError(f"{name}: {NOT_UTF8.format(path=path)}")


def is_utf8(path: str | Path) -> bool:
    """Whether the bytes of a path are UTF-8. Python keeps other bytes as unpaired surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old contents or the new ones.

    Unpaired surrogates, which have no UTF-8, are written as `\\ud800`. Inside JSON that is the standard escape.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file atomically. A symbolic link of that name is replaced, and what it points to stays as it is."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    with open_new(temporary) as file:
        file.write(content)
    os.replace(temporary, target)


def open_new(path: Path) -> BinaryIO:
    """Open a new file in place of a file or symbolic link of that name."""
    with suppress(FileNotFoundError):
        path.unlink()
    return path.open("xb")  # which never follows a link


def open_to_append(path: str | Path) -> int:
    """Open a file to read and append, created if it is missing; returns its descriptor.

    Raises:
        ConfigError: if it is a symbolic link, a pipe or a device.
        OSError: if it cannot be opened.
    """
    refuse_link(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ConfigError(f"{path}: is not a regular file. Remove it, or choose another folder.")
    return descriptor


def append(path: str | Path, text: str) -> None:
    """Append a text as a whole, or nothing of it.

    Raises:
        ConfigError, OSError: as `open_to_append`, or if the disk is full.
    """
    rest = memoryview(text.encode("utf-8", "backslashreplace"))
    descriptor = open_to_append(path)
    try:
        end = os.fstat(descriptor).st_size
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def refuse_link(path: str | Path) -> None:
    """Refuse to write where a symbolic link is: what it points to is not ours.

    Raises:
        ConfigError: if the path is a symbolic link itself. Folders above it may be.
    """
    if os.path.islink(path):
        raise ConfigError(
            f"{path}: is a symbolic link to {os.readlink(path)}, and nothing is written through links. Remove the "
            "link, or choose another folder."
        )


def write_json(document: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON document atomically, indented by two spaces.

    Args:
        document: JSON-compatible values (see `json_safe`).
        path: the file.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def json_safe(value: Any) -> Any:
    """Convert a value to strict JSON types.

    NaN and inf become null, tuples become lists, NumPy and torch scalars become numbers, other objects their text.
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def flush_to_disk(path: Path) -> None:
    """Call fsync on a file or folder, so that its contents survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
