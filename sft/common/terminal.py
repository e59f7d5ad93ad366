"""Whether a stream is a terminal that can redraw a line."""

from __future__ import annotations

import os
from typing import TextIO


def can_draw(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw a line: not if `TERM` is `dumb` or, outside of Windows, unset."""
    return stream.isatty() and os.environ.get("TERM", "" if os.name == "nt" else "dumb") != "dumb"
