"""What a check found about a run that is planned: a problem that stops it, or a note that is logged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A line about a setting that does not do what was asked (a problem), or that is odd but possible (a note)."""

    key: str
    message: str
    """Follows `key: `."""
    stops: bool = False

    @property
    def line(self) -> str:
        """`key: message`, to which the caller may add where the key was given."""
        return f"{self.key}: {self.message}"
