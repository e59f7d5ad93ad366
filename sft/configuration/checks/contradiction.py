"""A contradiction between settings, and texts that several checks use."""

from __future__ import annotations

import os
from typing import NamedTuple


class Contradiction(NamedTuple):
    """A problem with a key. The caller adds the file and line where the key was given."""

    key: str
    message: str
    """Names the other keys that are involved: it is not shown if one of them has an invalid value."""


def current_directory() -> str:
    """The directory that relative paths start from, to append to a message."""
    return f"(current directory: {os.getcwd()})"
