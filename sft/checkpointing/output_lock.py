"""One run at a time in an output folder: a lock that the system lets go when its holder dies."""

from __future__ import annotations

import errno
import logging
import os
import socket
from pathlib import Path

from sft.common.errors import ConfigError

logger = logging.getLogger("sft.train")
LOCK_FILE = ".lock"


class OutputLock:
    """Holds an output folder for this process. Use as a context: it is let go at its end.

    A lock of POSIX (`fcntl.lockf`): it belongs to the process, not to its children (a loader's worker that outlives a
    killed run does not hold it), and network file systems know it. Where there is none (Windows, some file systems),
    nothing is held, and a line says so.
    """

    def __init__(self) -> None:
        self._file = None

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, output_dir: str | Path) -> None:
        """Takes the lock, unless it is held already; does nothing where there is no such folder.

        Raises:
            ConfigError: if another run has it, naming that.
        """
        path = Path(output_dir, LOCK_FILE)
        if self._file is not None or not path.parent.is_dir():
            return
        try:
            import fcntl
        except ImportError:
            logger.info("This system has no file locks: start no other run into %s.", output_dir)
            return
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    logger.info("%s: no file locks there (%s): start no other run into it.", output_dir, error.strerror)
                    return
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise ConfigError(
                f"output_dir: {output_dir} is in use by another run ({holder}). Wait for its end, or name another "
                "folder."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
