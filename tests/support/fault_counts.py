"""Counts of injected faults, which the end of a test session prints."""

from __future__ import annotations

from collections import Counter

FAULTS: Counter[str] = Counter()
FAULT_KINDS = ("faults injected", "runs continued", "runs equal to the bit")


class Tally:
    """Counts injected faults, and the resumed runs that completed or were equal to the bit."""

    def injected(self) -> None:
        FAULTS["faults injected"] += 1

    def continued(self) -> None:
        FAULTS["runs continued"] += 1

    def equal(self) -> None:
        FAULTS["runs equal to the bit"] += 1
