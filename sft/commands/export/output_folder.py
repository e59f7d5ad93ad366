"""An output folder that gets its name only when it is complete and verified."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.common.errors import ConfigError
from sft.common.files import require_utf8
from sft.common.outside_files import reason


def resolve_output(output: str | None, model: str, *, is_merged: bool) -> Path:
    """Return the path of the new folder: `output`, or else the model's name with `-merged` or `-export`.

    Raises:
        ConfigError: if it exists and is not empty, or cannot be created.
    """
    if output:
        path = Path(output).expanduser()
    else:
        name = Path(model).expanduser()
        name = name if name.exists() else Path(name.name)
        name = name.absolute() if str(name) in (".", "..") else name
        path = name.with_name(name.name + ("-merged" if is_merged else "-export"))
    require_utf8("command line: --output", path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(f"command line: --output: {path} already exists. Name a new folder.")
    parent = next(folder for folder in _target(path).parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"command line: --output: {parent} is not a folder that this user can write to; name another folder."
        )
    return path


@contextmanager
def temporary_folder(output: Path) -> Iterator[Path]:
    """Yield a folder beside `output`, which is renamed to `output` at the end and removed on any error."""
    target = _target(output)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
    except OSError as error:
        raise ConfigError(
            f"command line: --output: {target} cannot be written ({reason(error)}); name another folder."
        ) from error
    try:
        yield folder
        for path in (folder, *folder.rglob("*")):  # mkdtemp and safetensors give access to the owner only
            path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
        os.rename(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _target(output: Path) -> Path:
    """Where the folder is: a link is what it points to. Messages name the path as it was given."""
    return Path(os.path.realpath(output))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
