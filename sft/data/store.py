"""Prepared rows in an Arrow file, memory-mapped: a row is read where it lies, and memory does not grow with the data.

Shapes: `R` rows, `T` tokens of a row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

LOST_PROMPT, LOST_END, TRAINED_END, THOUGHTS_LEFT_OUT, TOOLS_LEFT_OUT, CONTENT_LEFT_OUT = 1, 2, 4, 8, 16, 32
PROMPT_GOES_FURTHER = 64
"""Bits of `RowColumns.flags`: cut without a loss of anything trained; cut with a loss; an end token is trained; the
template left out thoughts, tools, or what stands beside tool calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowColumns:
    """What is kept of each row beside its tokens: arrays `[R]`."""

    num_supervised: np.ndarray
    """int32: tokens that are predicted and trained."""
    full_length: np.ndarray
    """int32: tokens before anything was cut."""
    flags: np.ndarray
    """uint8: see `LOST_PROMPT` and its kin."""
    digest: np.ndarray
    """uint64 of the conversation, letter case and white space aside: equal for duplicates."""
    number: np.ndarray
    """int64: which row of its source it is, from 1; the rows that are not used count too."""
    file: np.ndarray
    """int32: place among the source's files."""
    line: np.ndarray
    """int64: line in that file, from 1."""

    @classmethod
    def joined(cls, parts: "Sequence[RowColumns]") -> "RowColumns":
        """All rows of several, one after another."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def take(self, index: np.ndarray) -> "RowColumns":
        """These rows alone."""
        return RowColumns(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


_COLUMN_TYPES = {"num_supervised": "int32", "full_length": "int32", "flags": "uint8", "digest": "uint64"}
_COLUMN_TYPES |= {"number": "int64", "file": "int32", "line": "int64"}


class RowWriter:
    """Writes prepared rows, a batch at a time. Use as a context."""

    def __init__(self, path: Path):
        import pyarrow

        lists = pyarrow.large_list(pyarrow.int32())
        columns = [("input_ids", lists), ("labels", lists)]
        columns += [(name, getattr(pyarrow, kind)()) for name, kind in _COLUMN_TYPES.items()]
        self._schema = pyarrow.schema(columns)
        self._path = path

    def __enter__(self) -> "RowWriter":
        import pyarrow

        # As bytes: pyarrow takes no text for a name that is not UTF-8.
        self._file = pyarrow.OSFile(os.fsencode(self._path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._writer.close()

    def write(self, input_ids: np.ndarray, labels: np.ndarray, lengths: np.ndarray, columns: RowColumns) -> None:
        """Adds rows.

        Args:
            input_ids, labels: int32, the tokens of all rows one after another.
            lengths: tokens of each row, `[R]`.
            columns: what else is kept of them.
        """
        import pyarrow

        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        lists = [
            pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))
            for values in (input_ids, labels)
        ]
        plain = [pyarrow.array(getattr(columns, name), type=self._schema.field(name).type) for name in _COLUMN_TYPES]
        self._writer.write_batch(pyarrow.record_batch([*lists, *plain], schema=self._schema))


class StoredRows:
    """The rows of one Arrow file, in the order in which they were written."""

    def __init__(self, path: str | Path):
        import pyarrow

        self._path = str(path)
        # Held open by the arrays that are taken from it.
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(os.fsencode(self._path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._batches = [
            tuple(
                (column.offsets.to_numpy(), column.values.to_numpy())
                for column in (batch.column("input_ids"), batch.column("labels"))
            )
            for batch in batches
        ]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._columns = [
            RowColumns(**{name: batch.column(name).to_numpy() for name in _COLUMN_TYPES}) for batch in batches
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process maps the file for itself."""
        return type(self), (self._path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - int(self._starts[batch])
        values = {}
        for name, (offsets, tokens) in zip(("input_ids", "labels"), self._batches[batch], strict=True):
            values[name] = tokens[offsets[inside] : offsets[inside + 1]]
        return values

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 `[R]`."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(batch[0][0]) for batch in self._batches)])

    @cached_property
    def columns(self) -> RowColumns:
        """What is kept beside the tokens, of all rows."""
        empty = RowColumns(**{name: np.zeros(0, dtype=kind) for name, kind in _COLUMN_TYPES.items()})
        return RowColumns.joined([empty, *self._columns])


class PreparedRows:
    """A choice of rows from one or several files, each row as often as `index` names it.

    A row is `{"input_ids": ..., "labels": ...}`, int32 `[T]` each, read-only.
    """

    def __init__(self, parts: Sequence[StoredRows], index: np.ndarray | None = None):
        """Args:
        parts: files of rows; their rows are counted through.
        index: rows by that count, `[R]`; None for all.
        """
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.index = np.arange(self._starts[-1]) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        if row >= len(self.index):
            raise IndexError(row)
        counted = int(self.index[row])
        part = int(np.searchsorted(self._starts, counted, side="right")) - 1
        return self._parts[part][counted - int(self._starts[part])]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 `[R]`."""
        return np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in self._parts)])[self.index]

    def columns(self) -> RowColumns:
        """What is kept beside the tokens, of the chosen rows."""
        return RowColumns.joined([part.columns for part in self._parts]).take(self.index)

    def part_of_rows(self) -> np.ndarray:
        """Which of the files each row is from, int64 `[R]`."""
        return np.searchsorted(self._starts, self.index, side="right") - 1

    def select(self, rows: np.ndarray) -> "PreparedRows":
        """These of the rows, by their place here."""
        return PreparedRows(self._parts, self.index[rows])
