"""A folder that appears under its name only when it is whole and sound."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.common.errors import ConfigError


def resolve_output(output: str | None, model: str, *, merges: bool) -> Path:
    """The new folder's name.

    Raises:
        ConfigError: if there is something in it, or it cannot be made.
    """
    name = Path(model).expanduser()
    default = name if name.exists() else Path(name.name)
    default = default.absolute() if str(default) in (".", "..") else default
    path = (
        Path(output).expanduser() if output else default.with_name(default.name + ("-merged" if merges else "-export"))
    )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"command line: --output: {path} is there already. Name a new folder.")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"command line: --output: {there} cannot be written by this user; name another folder.")
    return path


@contextmanager
def written_aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write in, which gets its name at the end; on any error it is removed."""
    target = output.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):  # safetensors writes files that only their owner may read
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
