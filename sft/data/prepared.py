"""Records of what preparation makes: a prepared source, and a split of one or several sources."""

from __future__ import annotations

from dataclasses import dataclass

from sft.common.data_records import RowSource
from sft.data.dropped import DroppedRows
from sft.data.remarks import CountedRemarks
from sft.data.sources.load import Source
from sft.data.store import PreparedRows, StoredRows
from sft.prompting.formats import RecordFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedSource:
    """A source whose usable rows are on disk, and the counts of its rows."""

    name: str
    files: tuple[str, ...]
    weight: float
    probability: float | None
    record_format: RecordFormat
    rows: StoredRows
    rows_read: int
    """Rows of its files; `row_function` may have made more of them."""
    untrained_pieces: int
    dropped: DroppedRows
    remarks: CountedRemarks
    unused_columns: tuple[str, ...]

    def location(self, row: int) -> RowSource:
        """File and line of one of its stored rows."""
        columns = self.rows.columns
        file, line, part = (int(values[row]) for values in (columns.file, columns.line, columns.part))
        return RowSource(file=self.files[file], line=line, part=part)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The sources of a split, what was prepared from them, and the rows that belong to the split, each once."""

    sources: tuple[Source, ...]
    prepared: tuple[PreparedSource, ...]
    rows: PreparedRows
    num_own: int | None = None
    """The first sources whose dropped rows, and remarks on rows, are counted in this split; None for all. Those of rows
    that were held out of the training rows are counted there."""

    @property
    def own(self) -> tuple[PreparedSource, ...]:
        """The sources whose dropped rows are counted in this split."""
        return self.prepared[: self.num_own]

    def location(self, rows: PreparedRows, row: int) -> RowSource:
        """File and line of row number `row` of `rows`, a selection of the rows of this split."""
        source, own = rows.locate(row)
        return self.prepared[source].location(own)
