"""One run at a time in an output folder: a lock that the system releases when its holder dies."""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
from pathlib import Path
from typing import TextIO

from sft.checkpointing.checkpoints import list_checkpoints
from sft.common.errors import CheckpointError, ConfigError, one_line
from sft.common.files import open_to_append

logger = logging.getLogger("sft.train")
LOCK_FILE = ".lock"
_HOLDER = re.compile(r"(process \d+ on .*\n?)?")
"""The content of a lock file, which an earlier run may have left."""
_LONGEST_HOLDER = 500
"""Characters of a lock file that are read."""


class OutputLock:
    """A lock on an output folder for this process. A context manager, which releases it at its end.

    A POSIX lock (`fcntl.lockf`): it belongs to the process, not to its children (a loader's worker that outlives a
    killed run does not hold it), and network file systems support it. Where it is not supported (Windows, some file
    systems), nothing is locked, and a line is logged.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._file: TextIO | None = None
        self._folder_descriptor: int | None = None
        """The open folder: it shows where the folder is after it was renamed."""

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._folder_descriptor is not None:
            os.close(self._folder_descriptor)
            self._folder_descriptor = None

    def take(self, output_dir: str | Path) -> None:
        """Take the lock, unless it is held already; do nothing if the folder does not exist.

        Raises:
            ConfigError: if another run holds it, with its process and host; or if the lock's file is a link, or not
                ours.
        """
        path = Path(output_dir, LOCK_FILE)
        if self._file is not None or not path.parent.is_dir():
            return
        try:
            import fcntl  # not on Windows
        except ImportError:
            logger.info("This system has no file locks: do not start another run in %s.", output_dir)
            return
        file = os.fdopen(open_to_append(path), "a+", encoding="utf-8", errors="backslashreplace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    logger.info(
                        "%s does not support file locks (%s): do not start another run in it.",
                        output_dir,
                        error.strerror,
                    )
                    return
                file.seek(0)
                holder = file.read(_LONGEST_HOLDER).strip() or "another process"
            raise ConfigError(
                f"output_dir: {output_dir} is in use by another run ({holder}). Wait until it ends, or choose "
                "another folder."
            ) from None
        file.seek(0)
        if not _HOLDER.fullmatch(file.read(_LONGEST_HOLDER)):
            file.close()
            raise ConfigError(f"{path}: is not the lock file of a run, so it is not overwritten. Rename or remove it.")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file, self._folder = file, path.parent
        self._folder_descriptor = os.open(path.parent, os.O_RDONLY)

    def confirm(self) -> bool:
        """Confirm that the run still has its folder, before something is saved in it.

        A lock file that was deleted is created again, and so is a folder that was renamed or removed: what is trained
        from now on is kept there.

        Returns:
            Whether the folder was created again.

        Raises:
            CheckpointError: if another folder is in its place, or another run took the lock.
        """
        if self._file is None or self._folder_descriptor is None:
            return False
        folder = self._folder
        if _is_open_as(folder, self._folder_descriptor):
            if not _is_open_as(folder / LOCK_FILE, self._file.fileno()):
                logger.info("%s was deleted or replaced during the run: it is taken again.", folder / LOCK_FILE)
                self._take_again()
            return False
        fate, advice = self._fate()
        try:
            if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
                raise CheckpointError(
                    f"output_dir: {folder} is no longer the folder in which this run began, which {fate}. Nothing is "
                    f"saved in the folder that is there now.{advice}"
                )
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"output_dir: the folder {folder} {fate} during the run, and cannot be created again "
                f"({error.strerror}).{advice}"
            ) from None
        self._take_again()
        logger.warning(
            "output_dir: %s %s during the run. It was created again, and the run continues in it.%s",
            folder,
            fate,
            advice,
        )
        return True

    def check(self) -> None:
        """Check that the folder is where it was, before a record is written in it.

        Raises:
            CheckpointError: if not. The next save creates it again, or ends the run (see `confirm`).
        """
        if (whereabouts := self.whereabouts()) != "":
            raise CheckpointError(whereabouts.lstrip(". "))

    def whereabouts(self) -> str:
        """What became of the folder, to be appended to a message; "" if it is where it was."""
        if self._folder_descriptor is None or _is_open_as(self._folder, self._folder_descriptor):
            return ""
        fate, advice = self._fate()
        return f". The folder {fate} during the run.{advice}".rstrip(".")

    def _take_again(self) -> None:
        folder = self._folder
        self.__exit__()
        try:
            self.take(folder)
        except (ConfigError, OSError) as error:
            raise CheckpointError(f"{one_line(error)} The lock was deleted during this run, which ends here.") from None

    def _fate(self) -> tuple[str, str]:
        """What became of the folder, and where its checkpoints are."""
        unknown = "was renamed or removed"
        try:
            found = Path(os.readlink(f"/proc/self/fd/{self._folder_descriptor}"))
        except OSError:  # not on Linux
            return unknown, ""
        if found.name.endswith(" (deleted)"):
            return "was removed", ""
        checkpoints = list_checkpoints(found)
        newest = f" Its newest checkpoint is {checkpoints[-1]}." if checkpoints else ""
        return (f"was renamed to {found}", newest) if found.is_dir() else (unknown, "")


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the file or folder that is open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
