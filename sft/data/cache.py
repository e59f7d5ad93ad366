"""A folder of entries found by their content: each is made once, by one process, and appears complete or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sft.common.errors import DataError
from sft.common.files import flush_to_disk, refuse_link

logger = logging.getLogger("sft.data")
UNUSED_DAYS = 30
"""Entries that no run has used for this many days are deleted when a new entry is made."""
_SECONDS_A_DAY = 86_400
_SECONDS_BEFORE_FIRST_LINE = 3.0
_SECONDS_BETWEEN_LINES = 60.0
_ENTRY_NAME = re.compile(r"sft-[0-9a-f]{32}(\.lock|\.unfinished)?")
"""Names that this module creates. Any other file in the folder belongs to somebody else."""


def content_key(ingredients: Mapping[str, Any]) -> str:
    """The name of an entry: a digest of everything that it is made from."""
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=True, default=str)
    return f"sft-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def find_or_make(folder: Path, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """Find entry `key` in the cache, or make it with `make(empty_folder)`.

    Processes that need the same entry wait for the one that makes it. They wait for a file lock, which the operating
    system releases when its holder dies, not in a barrier that could time out. An unfinished entry never has its final
    name.

    Args:
        folder: The cache.
        key: See `content_key`.
        make: Fills the folder that it receives.

    Returns:
        The folder of the entry, and whether it existed before.

    Raises:
        DataError: If the cache cannot be written.
    """
    entry = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _exists(entry):
            return entry, True
        lock_file = folder / f"{key}.lock"
        refuse_link(lock_file)
        lock = FileLock(str(lock_file))
        _wait_for(lock)
        try:
            lock_file.touch()  # otherwise it would look unused
            return entry, _make_if_missing(entry, make)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"data_cache_dir: cannot write to {folder}: {error.strerror or error}. Free disk space or set another "
            "folder."
        ) from None


def _wait_for(lock: FileLock) -> None:
    """Acquire the lock, however long another process holds it, and log the waiting now and then."""
    started, timeout = time.monotonic(), _SECONDS_BEFORE_FIRST_LINE
    while True:
        try:
            lock.acquire(timeout=timeout)
            return
        except Timeout:
            is_first = timeout == _SECONDS_BEFORE_FIRST_LINE
            waited = "" if is_first else f" ({time.monotonic() - started:.0f} s)"
            logger.info("Another process is preparing the same data; waiting for it%s.", waited)
            timeout = _SECONDS_BETWEEN_LINES


def _exists(entry: Path) -> bool:
    """Whether the entry exists. If so, it is marked as used now."""
    if not entry.is_dir():
        return False
    with suppress(OSError):  # a cache filled by somebody else may be read-only
        os.utime(entry)
    return True


def _make_if_missing(entry: Path, make: Callable[[Path], None]) -> bool:
    """Make the entry, unless another process did so meanwhile. Returns whether it existed."""
    if _exists(entry):
        return True
    _delete_unused(entry.parent)
    unfinished = entry.with_name(f"{entry.name}.unfinished")
    refuse_link(unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    unfinished.mkdir()
    try:
        make(unfinished)
        for path in unfinished.iterdir():
            flush_to_disk(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(entry)
    return False


def _delete_unused(folder: Path) -> None:
    old = [path for path in folder.iterdir() if _ENTRY_NAME.fullmatch(path.name) and _is_old(path)]
    for path in old:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if old:
        logger.info("Deleted %d entries of %s that no run used for %d days.", len(old), folder, UNUSED_DAYS)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > UNUSED_DAYS * _SECONDS_A_DAY
    except FileNotFoundError:  # another process finished or deleted it just now
        return False
