"""Suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` to append to a message; empty if no known name is similar."""
    match = find_closest(name, known)
    return f" Did you mean {match!r}?" if match is not None else ""


def find_closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar, ignoring case; None if none is similar."""
    by_lower_case = {item.lower(): item for item in sorted(known)}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.7)
    return by_lower_case[matches[0]] if matches else None
