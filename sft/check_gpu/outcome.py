"""What a check found out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The result of a check."""

    status: str
    """`PASS`, `FAIL`, or `SKIP` where this machine or the time does not allow the check."""
    figure: str
    """What was measured, or the reason, on one line."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: figures by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A check: its name, and the function that makes it."""

    name: str
    check: Callable[[], Outcome]


def judged(is_right: bool, figure: str, **values: Any) -> Outcome:
    """PASS or FAIL with a figure; `values` are the same figures for programs."""
    return Outcome(status=PASS if is_right else FAIL, figure=figure, values=values)


def skipped(reason: str, **values: Any) -> Outcome:
    """SKIP with the reason."""
    return Outcome(status=SKIP, figure=reason, values=values)
