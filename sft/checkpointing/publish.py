"""A checkpoint appears complete or not at all: written to a staging folder, flushed to disk, and renamed once."""

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
from sft.common.files import flush_to_disk, refuse_link

logger = logging.getLogger("sft.train")
UNFINISHED = ".unfinished"
"""The folder in `output_dir` in which checkpoints are written, and from which old ones are deleted."""
_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "inline_container", "Parent directory", "iostream error")
"""Substrings of the RuntimeErrors that torch raises if a file cannot be written."""
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG}


def publish(staging: Path, target: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint, flush everything to disk, and rename the folder to its final name.

    Args:
        staging: the folder in which it was written, on the same file system.
        target: its final name.
        entries: see `sft.checkpointing.manifest.write_manifest`.

    Raises:
        OSError: if that fails. Then nothing exists under the final name.
    """
    write_manifest(staging, entries)
    for path in sorted(staging.rglob("*"), reverse=True):  # the contents of a folder before the folder
        flush_to_disk(path)
    flush_to_disk(staging)
    os.rename(staging, target)
    flush_to_disk(target.parent)


def rotate(output_dir: Path, *, limit: int | None, best_step: int | None) -> None:
    """Delete the oldest checkpoints beyond a limit, but never the best or the newest one.

    Each is renamed first: a process that dies while deleting leaves no partial checkpoint under its name. Of a link,
    only the link is deleted.
    """
    checkpoints = list_checkpoints(output_dir)
    kept = [path for path in checkpoints if checkpoint_step(path) == best_step or path == checkpoints[-1]]
    others = [path for path in checkpoints if path not in kept]
    surplus = len(checkpoints) - max(limit, len(kept)) if limit else 0
    for path in others[:surplus]:
        try:
            if path.is_symlink():
                target = os.path.realpath(path)
                path.unlink()
                logger.info("%s is a link, so only the link was deleted; %s is still there.", path, target)
                continue
            doomed = output_dir / UNFINISHED / f"deleted-{path.name}"
            doomed.parent.mkdir(exist_ok=True)
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            logger.info("%s cannot be deleted: %s. Training continues.", path, error.strerror)
    with suppress(OSError):  # not empty, or missing
        (output_dir / UNFINISHED).rmdir()


def clear_unfinished(output_dir: str | Path) -> None:
    """Remove what a killed process had not finished writing or deleting."""
    folder = Path(output_dir, UNFINISHED)
    refuse_link(folder)
    if folder.is_dir():
        if any(folder.glob("checkpoint-*")):
            logger.info("Removed a checkpoint that an earlier run had not finished from %s.", output_dir)
        shutil.rmtree(folder)


def describe_disk_error(error: Exception, folder: str | Path) -> str | None:
    """The reason why a file could not be written; None for other errors.

    Args:
        error: raised by Python, torch or safetensors.
        folder: where the file was to be written, to report the free space.
    """
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS and not isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        what = error.strerror or str(error)
    elif type(error).__name__ == "SafetensorError" and "os error" in str(error):
        what = " ".join(str(error).split())
    elif isinstance(error, RuntimeError) and any(text in str(error) for text in _TORCH_WRITE_ERRORS):
        what = "a file could not be written"
    else:
        return None
    return f"{what}{_free_space(folder)}"


def describe_full_disk(error: Exception) -> str | None:
    """The line for a full or read-only disk; None for other errors."""
    match = re.search(r"\(os error (\d+)\)", str(error))  # in safetensors' own class of errors
    number = error.errno if isinstance(error, OSError) else int(match.group(1)) if match else None
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    name = getattr(error, "filename", None)
    return f"{name or 'a file'} cannot be written: {os.strerror(number)}"


def _free_space(folder: str | Path) -> str:
    existing = next((path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists()), None)
    return "" if existing is None else f" ({shutil.disk_usage(existing).free / 2**20:,.0f} MiB are free there)"
