"""A contradiction between settings, and texts that several checks use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from sft.common.did_you_mean import did_you_mean


class Contradiction(NamedTuple):
    """A problem with a key. The caller adds the file and line where the key was given."""

    key: str
    message: str
    """Names the other keys that are involved: it is not shown if one of them has an invalid value."""


def current_directory() -> str:
    """The directory that relative paths start from, to append to a message."""
    return f"(current directory: {os.getcwd()})"


def did_you_mean_file(path: str | Path) -> str:
    """` Did you mean 'x'?` with the most similar name in the folder of a path; empty if there is none."""
    path = Path(path)
    is_readable = os.path.isdir(path.parent) and os.access(path.parent, os.R_OK)
    return did_you_mean(path.name, os.listdir(path.parent) if is_readable else [])
