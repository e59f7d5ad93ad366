"""The closest known name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name comes near."""
    by_lower_case = {item.lower(): item for item in sorted(known)}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.7)
    return f" Did you mean {by_lower_case[matches[0]]!r}?" if matches else ""
