"""Counts of what used rows contain that a user may not expect: the size does not grow with the number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sft.common.data_records import NamedRows, RowRemarks, RowSource

EXAMPLES_PER_NAME = 3
"""Rows of each name that are kept with their location. All are counted."""
MAX_NAMES = 50
"""Names of a kind that are counted separately, the first ones; the data decides how many there are."""
OTHERS = "others"
_MAX_CHARACTERS = 60
Remark = tuple[RowSource, str, Sequence[str]]
"""A row, a field of `RowRemarks`, and the names under which the row is counted there."""


@dataclass(kw_only=True, slots=True)
class _Names:
    """The rows of one kind of remark, by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[RowSource]] = field(default_factory=dict)

    def add(self, name: str, count: int, sources: Iterable[RowSource]) -> None:
        self.counts[name] += count
        kept = self.examples.setdefault(name, [])
        kept += list(sources)[: EXAMPLES_PER_NAME - len(kept)]


@dataclass(kw_only=True, slots=True)
class CountedRemarks:
    """The remarks on the rows of a chunk or of a source. The fields are those of `RowRemarks`."""

    unread_keys: _Names = field(default_factory=_Names)
    control_tokens: _Names = field(default_factory=_Names)
    split_tokens: _Names = field(default_factory=_Names)
    changes: _Names = field(default_factory=_Names)
    template_kwargs: _Names = field(default_factory=_Names)

    def add(self, source: RowSource, kind: str, names: Iterable[str]) -> None:
        """Count a row once under each name."""
        for name in dict.fromkeys(name[:_MAX_CHARACTERS] for name in names):
            getattr(self, kind).add(name, 1, [source])

    def update(self, later: "CountedRemarks") -> None:
        """Add all rows of `later`, which follow these. Names beyond the first `MAX_NAMES` are counted together."""
        for kind, names in later._kinds():
            own = getattr(self, kind)
            for name, count in names.counts.items():
                is_known = name in own.counts or len(own.counts) < MAX_NAMES
                own.add(name if is_known else OTHERS, count, names.examples[name])

    def records(self) -> RowRemarks:
        """The counts, most rows first."""
        return RowRemarks(
            **{
                kind: tuple(
                    NamedRows(name=name, rows=count, examples=tuple(names.examples[name]))
                    for name, count in names.counts.most_common()
                )
                for kind, names in self._kinds()
            }
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it; see `from_json`."""
        return {
            kind: {
                "counts": names.counts,
                "examples": {name: [asdict(source) for source in kept] for name, kept in names.examples.items()},
            }
            for kind, names in self._kinds()
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "CountedRemarks":
        """The inverse of `to_json`, after a round trip through JSON text."""
        return cls(
            **{
                kind: _Names(
                    counts=Counter(names["counts"]),
                    examples={
                        name: [RowSource(**source) for source in sources] for name, sources in names["examples"].items()
                    },
                )
                for kind, names in document.items()
            }
        )

    def _kinds(self) -> Iterator[tuple[str, _Names]]:
        return ((kind.name, getattr(self, kind.name)) for kind in fields(self))
