"""The closest known name to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no known name comes near."""
    meant = find_closest(name, known)
    return f" Did you mean {meant!r}?" if meant is not None else ""


def find_closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one comes near, letter case aside; None where there is none."""
    by_lower_case = {item.lower(): item for item in sorted(known)}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.7)
    return by_lower_case[matches[0]] if matches else None
