"""One run at a time in an output folder: a lock that the system releases when its holder dies."""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

from sft.common.errors import ConfigError

logger = logging.getLogger("sft.train")
LOCK_FILE = ".lock"


class OutputLock:
    """A lock on an output folder for this process. A context manager, which releases it at its end.

    A POSIX lock (`fcntl.lockf`): it belongs to the process, not to its children (a loader's worker that outlives a
    killed run does not hold it), and network file systems support it. Where it is not supported (Windows, some file
    systems), nothing is locked, and a line is logged.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, output_dir: str | Path) -> None:
        """Take the lock, unless it is held already; do nothing if the folder does not exist.

        Raises:
            ConfigError: if another run holds it, with its process and host.
        """
        path = Path(output_dir, LOCK_FILE)
        if self._file is not None or not path.parent.is_dir():
            return
        try:
            import fcntl  # not on Windows
        except ImportError:
            logger.info("This system has no file locks: do not start another run in %s.", output_dir)
            return
        file = path.open("a+", encoding="utf-8")
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
                holder = file.read().strip() or "another process"
            raise ConfigError(
                f"output_dir: {output_dir} is in use by another run ({holder}). Wait until it ends, or choose "
                "another folder."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
