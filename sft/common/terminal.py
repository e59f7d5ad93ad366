"""What a terminal can do."""

from __future__ import annotations

import os
from typing import TextIO


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be drawn anew; one that calls itself dumb is none."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
