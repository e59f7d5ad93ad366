"""A table of a report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows of text under a header; the first column labels the others."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def has_header(self) -> bool:
        """Whether the header says more than that there is a value."""
        return any(self.header) and self.header != ("", "value")
