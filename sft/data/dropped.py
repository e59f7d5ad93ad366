"""Counts of dropped rows, with examples: the size does not grow with the number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sft.common.data_records import DroppedRow, RowProblem, RowSource
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTooLong

EXAMPLES_PER_REASON = 10
"""Dropped rows of each reason that are kept with their location. All are counted."""


@dataclass(kw_only=True, slots=True)
class DroppedRows:
    """The dropped rows of a chunk or of a source."""

    counts: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    examples: list[DroppedRow] = field(default_factory=list)
    """The first rows of each reason, at most `EXAMPLES_PER_REASON`."""
    too_long: Counter[str] = field(default_factory=Counter)
    """What truncation would lose (`answer`, `end`, `prompt`) -> rows dropped for their length."""
    full_lengths: Counter[int] = field(default_factory=Counter)
    """Length in tokens -> rows of that length dropped for it."""

    def add(self, source: RowSource, refusal: RowRefused) -> None:
        """Count one row."""
        self.counts[refusal.problem.reason] += 1
        if self.counts[refusal.problem.reason] <= EXAMPLES_PER_REASON:
            self.examples.append(DroppedRow(source=source, problem=refusal.problem))
        if isinstance(refusal, RowTooLong):
            self.too_long[refusal.loses] += 1
            self.full_lengths[refusal.full_length] += 1

    def update(self, later: "DroppedRows") -> None:
        """Add all rows of `later`, which follow these."""
        before = Counter(self.counts)
        for row in later.examples:
            before[row.problem.reason] += 1
            if before[row.problem.reason] <= EXAMPLES_PER_REASON:
                self.examples.append(row)
        self.counts.update(later.counts)
        self.too_long.update(later.too_long)
        self.full_lengths.update(later.full_lengths)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it; see `from_json`."""
        return {
            "counts": self.counts,
            "examples": [asdict(row) for row in self.examples],
            "too_long": self.too_long,
            "full_lengths": self.full_lengths,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "DroppedRows":
        """The inverse of `to_json`, after a round trip through JSON text."""
        return cls(
            counts=Counter(document["counts"]),
            examples=[
                DroppedRow(source=RowSource(**row["source"]), problem=RowProblem(**row["problem"]))
                for row in document["examples"]
            ],
            too_long=Counter(document["too_long"]),
            full_lengths=Counter({int(length): count for length, count in document["full_lengths"].items()}),
        )
