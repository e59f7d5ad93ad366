"""A checkpoint appears whole or not at all: written aside, brought to the disk, and named by one rename."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sft.checkpointing.checkpoints import list_checkpoints
from sft.checkpointing.manifest import write_manifest
from sft.checkpointing.resume_point import checkpoint_step
from sft.common.files import flush_to_disk

logger = logging.getLogger("sft.train")
UNFINISHED = ".unfinished"
"""The folder in `output_dir` in which checkpoints are written, and from which old ones are deleted."""
_NOT_ON_DISK = ("PytorchStreamWriter", "inline_container", "Parent directory", "iostream error")
"""What torch says, as a RuntimeError, where a file cannot be written."""
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG}


def publish(aside: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Gives a written checkpoint its manifest and, once all of it is on the disk, its name.

    Args:
        aside: where it was written, on the same file system.
        target: its name from now on.
        facts: see `sft.checkpointing.manifest.write_manifest`.

    Raises:
        OSError: if it cannot be; then there is nothing under its name.
    """
    write_manifest(aside, facts)
    for path in sorted(aside.rglob("*"), reverse=True):  # what is in a folder before the folder
        flush_to_disk(path)
    flush_to_disk(aside)
    os.rename(aside, target)
    flush_to_disk(target.parent)


def rotate(output_dir: Path, *, limit: int | None, best_step: int | None) -> None:
    """Deletes the oldest checkpoints beyond a limit, but never the best one nor the newest.

    Each is moved aside first: a process that dies while it deletes leaves no half of a checkpoint under its name.
    """
    checkpoints = list_checkpoints(output_dir)
    kept = [path for path in checkpoints if checkpoint_step(path) == best_step or path == checkpoints[-1]]
    others = [path for path in checkpoints if path not in kept]
    surplus = len(checkpoints) - max(limit, len(kept)) if limit else 0
    for path in others[:surplus]:
        try:
            doomed = output_dir / UNFINISHED / f"deleted-{path.name}"
            doomed.parent.mkdir(exist_ok=True)
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.info("%s cannot be deleted: %s. Training goes on.", path, error.strerror)
    with suppress(OSError):  # not empty, or never made
        (output_dir / UNFINISHED).rmdir()


def clear_unfinished(output_dir: str | Path) -> None:
    """Removes what a process that was killed had not finished writing, or deleting."""
    folder = Path(output_dir, UNFINISHED)
    if folder.is_dir():
        if any(folder.glob("checkpoint-*")):
            logger.info("A checkpoint that an earlier run did not finish was removed from %s.", output_dir)
        shutil.rmtree(folder)


def disk_failure(error: Exception, folder: str | Path) -> str | None:
    """What the system says of a file that could not be written; None if the error is about something else.

    Args:
        error: as Python, torch or safetensors raised it.
        folder: where it was to be written, for the room that is left there.
    """
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS and not isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        what = error.strerror or str(error)
    elif type(error).__name__ == "SafetensorError" and "os error" in str(error):
        what = " ".join(str(error).split())
    elif isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NOT_ON_DISK):
        what = "a file could not be written"
    else:
        return None
    return f"{what}{_room_left(folder)}"


def full_disk(error: Exception) -> str | None:
    """What the system says where there is no room, or none that may be written; None for any other error."""
    said = re.search(r"\(os error (\d+)\)", str(error))  # by safetensors, which raises an error of its own
    number = error.errno if isinstance(error, OSError) else int(said.group(1)) if said else None
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    name = getattr(error, "filename", None)
    return f"{name or 'a file'} cannot be written: {os.strerror(number)}"


def _room_left(folder: str | Path) -> str:
    there = next((path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists()), None)
    return "" if there is None else f" ({shutil.disk_usage(there).free / 2**20:,.0f} MiB are free there)"
