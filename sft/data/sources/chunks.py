"""Stretches of a source's rows: small enough to send to a worker process, which turns them into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

from sft.common.data_records import RawRow, RowProblem, RowSource
from sft.data.sources.json_rows import parse_json_line

MAX_ROWS = 512
"""Rows of a stretch at most."""
MAX_BYTES = 1 << 20
"""Bytes (or characters) of a stretch at most, unless a single row is longer."""

Entry = Mapping[str, Any] | RowProblem
"""What a row holds: its fields, or why it has none."""
Line = TypeVar("Line", bytes, str)
Item = TypeVar("Item")


class Stretch(Protocol):
    """Consecutive rows of one file."""

    @property
    def num_rows(self) -> int: ...

    def rows(self, places: Sequence[int] | None = None) -> list[RawRow]:
        """Its rows; with `places` those alone, by their number from 0, in that order."""
        ...

    def first(self, count: int) -> "Stretch":
        """Its first `count` rows alone."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A stretch of a source's rows. Pickles small and fast: JSON Lines and text travel as they stand in the file."""

    file_index: int
    """Place of its file among `Source.files`."""
    share_read: float
    """Share of the whole source that is read once this chunk is, 0 to 1."""
    stretch: Stretch

    @property
    def num_rows(self) -> int:
        """Rows in it, known without parsing."""
        return self.stretch.num_rows

    def rows(self, places: Sequence[int] | None = None) -> list[RawRow]:
        """Parses; bad content comes out as `RawRow.problem`.

        Args:
            places: numbers of rows, from 0, to parse alone; None for all.
        """
        return self.stretch.rows(places)


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonLines:
    """Whole lines of JSON, not parsed yet."""

    file: str
    first_line: int
    data: bytes
    num_rows: int
    """Lines that are not blank."""

    def rows(self, places: Sequence[int] | None = None) -> list[RawRow]:
        return [
            _raw_row(RowSource(file=self.file, line=number), parse_json_line(line))
            for number, line in _chosen(_numbered_rows(self.data.split(b"\n"), self.first_line), places)
        ]

    def first(self, count: int) -> "JsonLines":
        return replace(self, data=b"\n".join(_first_rows(self.data.split(b"\n"), count)), num_rows=count)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLines:
    """Whole lines of text; each that is not blank is a row."""

    file: str
    first_line: int
    text: str
    num_rows: int

    def rows(self, places: Sequence[int] | None = None) -> list[RawRow]:
        return [
            RawRow(source=RowSource(file=self.file, line=number), record={"text": line.rstrip("\r")})
            for number, line in _chosen(_numbered_rows(self.text.split("\n"), self.first_line), places)
        ]

    def first(self, count: int) -> "TextLines":
        return replace(self, text="\n".join(_first_rows(self.text.split("\n"), count)), num_rows=count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entries:
    """Rows that are parsed already. Held apart from their places: `RawRow`s would take ten times as long to pickle."""

    file: str
    lines: Sequence[int]
    entries: Sequence[Entry]

    @property
    def num_rows(self) -> int:
        return len(self.entries)

    def rows(self, places: Sequence[int] | None = None) -> list[RawRow]:
        return [
            _raw_row(RowSource(file=self.file, line=line), entry)
            for line, entry in _chosen(list(zip(self.lines, self.entries, strict=True)), places)
        ]

    def first(self, count: int) -> "Entries":
        return replace(self, lines=self.lines[:count], entries=self.entries[:count])


def is_blank(line: bytes | str) -> bool:
    """Whether a line is no row. Of bytes, ASCII white space is blank; of text, all that Unicode calls so."""
    return not line or line.isspace()


def line_blocks(lines: Iterable[Line]) -> Iterator[tuple[int, list[Line], int]]:
    """Lines in blocks of at most `MAX_ROWS` rows and `MAX_BYTES`; a longer line is a block of its own.

    Yields:
        The number of the first line (from 1), the lines, and how many of them are rows; blocks without rows are left
        out.
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
    """Parsed rows in stretches.

    Args:
        file: their file's name.
        entries: line, entry, and how far it reaches: bytes or characters from the beginning of the file.

    Yields:
        A stretch, and how far it reaches.
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


def _chosen(items: list[Item], places: Sequence[int] | None) -> list[Item]:
    return items if places is None else [items[place] for place in places]


def _first_rows(lines: list[Line], count: int) -> list[Line]:
    """Lines up to the `count`-th that is a row."""
    rows = (index for index, line in enumerate(lines) if not is_blank(line))
    return lines[: next(islice(rows, count - 1, None)) + 1]


def _raw_row(source: RowSource, entry: Entry) -> RawRow:
    if isinstance(entry, RowProblem):
        return RawRow(source=source, problem=entry)
    return RawRow(source=source, record=entry)
