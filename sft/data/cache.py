"""A folder of entries found by content: made once, by one process, whole or not at all."""

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
from typing import TYPE_CHECKING, Any

from sft.common.errors import DataError
from sft.common.files import flush_to_disk

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger("sft.data")
UNUSED_DAYS = 30
"""Entries that no run has used for so long are deleted when a new one is made."""
_SECONDS_A_DAY = 86_400
_SECONDS_TILL_TOLD = 3.0
_SECONDS_BETWEEN_WORDS = 60.0
_OURS = re.compile(r"sft-[0-9a-f]{32}(\.lock|\.unfinished)?")
"""Names that this module gives. Whatever else lies in the folder is somebody's."""


def content_key(ingredients: Mapping[str, Any]) -> str:
    """The name of an entry: a digest of all that it is made from."""
    text = json.dumps(ingredients, sort_keys=True, ensure_ascii=True, default=str)
    return f"sft-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def find_or_make(folder: Path, key: str, make: Callable[[Path], None]) -> tuple[Path, bool]:
    """The folder of entry `key`, made by `make(empty_folder)` if it is not there yet.

    Processes that want the same entry wait for the one that makes it: for a lock on a file, which the system lets go
    when its holder dies, and in no barrier that could time out. What is not finished is never seen under its name.

    Args:
        folder: the cache.
        key: see `content_key`.
        make: fills the folder that it is given.

    Returns:
        The entry's folder, and whether it was there already.

    Raises:
        DataError: if the cache cannot be written.
    """
    from filelock import FileLock

    entry = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_there(entry):
            return entry, True
        lock_file = folder / f"{key}.lock"
        lock = FileLock(str(lock_file))
        _wait_for(lock)
        try:
            lock_file.touch()  # or it would look unused
            return entry, _make_unless_there(entry, make)
        finally:
            lock.release()
    except OSError as error:
        raise DataError(
            f"data_cache_dir: {folder} cannot be written: {error.strerror or error}. Make room, or name another folder."
        ) from None


def _wait_for(lock: "FileLock") -> None:
    """Takes the lock, however long another process holds it; says so now and then."""
    from filelock import Timeout

    since, patience = time.monotonic(), _SECONDS_TILL_TOLD
    while True:
        try:
            lock.acquire(timeout=patience)
            return
        except Timeout:
            waited = f" ({time.monotonic() - since:.0f} s)" if patience > _SECONDS_TILL_TOLD else ""
            logger.info("Another process is preparing the same data; waiting for it%s.", waited)
            patience = _SECONDS_BETWEEN_WORDS


def _is_there(entry: Path) -> bool:
    """Whether there is such an entry; if so, it counts as used today."""
    if not entry.is_dir():
        return False
    with suppress(OSError):  # a cache that others filled may be read alone
        os.utime(entry)
    return True


def _make_unless_there(entry: Path, make: Callable[[Path], None]) -> bool:
    """Makes the entry, unless another process did while this one waited; returns whether it was there."""
    if _is_there(entry):
        return True
    _delete_unused(entry.parent)
    unfinished = entry.with_name(f"{entry.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
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
    old = [path for path in folder.iterdir() if _OURS.fullmatch(path.name) and _is_old(path)]
    for path in old:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if old:
        logger.info("Deleted %d entries of %s that no run used for %d days.", len(old), folder, UNUSED_DAYS)


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > UNUSED_DAYS * _SECONDS_A_DAY
    except FileNotFoundError:  # finished or deleted by another process at this moment
        return False
