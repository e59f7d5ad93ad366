"""Chunks of a source: small enough to send to a worker process, which parses them into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

from sft.common.data_records import RawRow, RowProblem, RowSource
from sft.data.sources.json_rows import parse_json_line

MAX_ROWS = 512
"""Maximum number of rows of a block."""
MAX_BYTES = 1 << 20
"""Maximum size of a block in bytes (or characters), unless a single row is longer."""

Entry = Mapping[str, Any] | RowProblem
"""The content of a row: its fields, or why it cannot be read."""
Line = TypeVar("Line", bytes, str)
Item = TypeVar("Item")


class RowBlock(Protocol):
    """Consecutive rows of one file."""

    @property
    def num_rows(self) -> int: ...

    def rows(self, indices: Sequence[int] | None = None) -> list[RawRow]:
        """Its rows, or only those with the given indices, in the given order."""
        ...

    def first(self, count: int) -> "RowBlock":
        """A block of its first `count` rows."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A block of a source's rows. Small and fast to pickle: JSON Lines and text are sent unparsed."""

    file_index: int
    """Index of its file in `Source.files`."""
    share_read: float
    """Share of the source that has been read at the end of this chunk, 0 to 1."""
    block: RowBlock

    @property
    def num_rows(self) -> int:
        """Number of its rows, known without parsing."""
        return self.block.num_rows

    def rows(self, indices: Sequence[int] | None = None) -> list[RawRow]:
        """Parse its rows. A row that cannot be read has a `RawRow.problem`.

        Args:
            indices: Indices of the rows to parse; None for all.
        """
        return self.block.rows(indices)


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """Complete lines of JSON, not parsed yet."""

    file: str
    first_line: int
    data: bytes
    num_rows: int
    """Number of lines that are not blank."""

    def rows(self, indices: Sequence[int] | None = None) -> list[RawRow]:
        return [
            _raw_row(RowSource(file=self.file, line=number), parse_json_line(line))
            for number, line in _chosen(_numbered_rows(self.data.split(b"\n"), self.first_line), indices)
        ]

    def first(self, count: int) -> "JsonLines":
        return replace(self, data=b"\n".join(_first_rows(self.data.split(b"\n"), count)), num_rows=count)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLines:
    """Complete lines of text. Each line that is not blank is a row."""

    file: str
    first_line: int
    text: str
    num_rows: int

    def rows(self, indices: Sequence[int] | None = None) -> list[RawRow]:
        return [
            RawRow(source=RowSource(file=self.file, line=number), record={"text": line.rstrip("\r")})
            for number, line in _chosen(_numbered_rows(self.text.split("\n"), self.first_line), indices)
        ]

    def first(self, count: int) -> "TextLines":
        return replace(self, text="\n".join(_first_rows(self.text.split("\n"), count)), num_rows=count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """Parsed rows and their lines, kept in separate sequences: `RawRow`s would take ten times as long to pickle."""

    file: str
    lines: Sequence[int]
    entries: Sequence[Entry]

    @property
    def num_rows(self) -> int:
        return len(self.entries)

    def rows(self, indices: Sequence[int] | None = None) -> list[RawRow]:
        return [
            _raw_row(RowSource(file=self.file, line=line), entry)
            for line, entry in _chosen(list(zip(self.lines, self.entries, strict=True)), indices)
        ]

    def first(self, count: int) -> "Entries":
        return replace(self, lines=self.lines[:count], entries=self.entries[:count])


def is_blank(line: bytes | str) -> bool:
    """Whether a line is not a row. In bytes only ASCII white space is blank; in text all Unicode white space is."""
    return not line or line.isspace()


def line_blocks(lines: Iterable[Line]) -> Iterator[tuple[int, list[Line], int]]:
    """Group lines into blocks of at most `MAX_ROWS` rows and `MAX_BYTES`. A longer line is a block of its own.

    Yields:
        The number of the first line (from 1), the lines, and how many of them are rows. Blocks without rows are
        skipped.
    """
    block: list[Line] = []
    first_line, size, num_rows = 1, 0, 0
    for number, line in enumerate(lines, start=1):
        if block and (size + len(line) > MAX_BYTES or num_rows == MAX_ROWS):
            if num_rows:
                yield first_line, block, num_rows
            block, first_line, size, num_rows = [], number, 0, 0
        block.append(line)
        size += len(line)
        num_rows += not is_blank(line)
    if num_rows:
        yield first_line, block, num_rows


def entry_blocks(file: str, entries: Iterable[tuple[int, Entry, int]]) -> Iterator[tuple[Entries, int]]:
    """Group parsed rows into blocks.

    Args:
        file: Name of their file.
        entries: Line, entry, and its end: bytes or characters from the beginning of the file.

    Yields:
        A block, and its end.
    """
    lines: list[int] = []
    held: list[Entry] = []
    start = reached = 0
    for line, entry, reached in entries:
        lines.append(line)
        held.append(entry)
        if len(held) == MAX_ROWS or reached - start >= MAX_BYTES:
            yield Entries(file=file, lines=lines, entries=held), reached
            lines, held, start = [], [], reached
    if held:
        yield Entries(file=file, lines=lines, entries=held), reached


def _numbered_rows(lines: Iterable[Line], first_line: int) -> list[tuple[int, Line]]:
    return [(number, line) for number, line in enumerate(lines, start=first_line) if not is_blank(line)]


def _chosen(items: list[Item], indices: Sequence[int] | None) -> list[Item]:
    return items if indices is None else [items[index] for index in indices]


def _first_rows(lines: list[Line], count: int) -> list[Line]:
    """Lines up to and including the `count`-th row."""
    rows = (index for index, line in enumerate(lines) if not is_blank(line))
    return lines[: next(islice(rows, count - 1, None)) + 1]


def _raw_row(source: RowSource, entry: Entry) -> RawRow:
    if isinstance(entry, RowProblem):
        return RawRow(source=source, problem=entry)
    return RawRow(source=source, record=entry)
