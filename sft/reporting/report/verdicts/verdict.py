"""A verdict, and how its parts are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
SIGNS = {GOOD: "✓", WARN: "!", BAD: "✗", UNKNOWN: "?"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The answer to a question about a run."""

    question: str
    state: str
    """`good`, `warn`, `bad`, or `unknown` where the records do not decide it."""
    sentence: str
    figures: str
    """The numbers behind it, as a sentence; empty without any."""
    rule: str

    @property
    def sign(self) -> str:
        return SIGNS[self.state]


def as_sentence(parts: Sequence[str]) -> str:
    """Parts joined by semicolons, capitalized, with a full stop; empty without parts."""
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""
