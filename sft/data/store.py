"""Prepared rows in memory-mapped Arrow files: rows are read in place, and memory does not grow with the data.

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
import pyarrow

from sft.data.weight_store import WeightColumns, WeightWriter, read_weights

LOST_PROMPT, LOST_END, TRAINED_END, THOUGHTS_LEFT_OUT, TOOLS_LEFT_OUT, CONTENT_LEFT_OUT = 1, 2, 4, 8, 16, 32
PROMPT_GOES_FURTHER, SHORTENED = 64, 128
"""Bits of `RowColumns.flags`: truncated without losing supervised tokens; truncated with such a loss; an end token is
supervised; the chat template omits thoughts, tools, or content beside tool calls; a generation prompt is longer than
the text before the trained turn; the conversation was shortened to its latest turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowColumns:
    """What is stored of each row besides its tokens: arrays `[R]`."""

    num_supervised: np.ndarray
    """int32: tokens that are predicted and trained."""
    full_length: np.ndarray
    """int32: tokens before truncation."""
    flags: np.ndarray
    """uint8: see `LOST_PROMPT` and the constants after it."""
    digest: np.ndarray
    """uint64: digest of the conversation, ignoring case and white space. Equal for duplicates."""
    number: np.ndarray
    """int64: number of the row in its source, from 1; dropped rows count too."""
    file: np.ndarray
    """int32: index of its file in the source's files."""
    line: np.ndarray
    """int64: line in that file, from 1."""
    part: np.ndarray
    """int32: see `RowSource.part`."""
    piece: np.ndarray
    """int32: number of the piece in its row, from 1; 0 for a row that is not split. Digest, flags and `full_length` are
    those of its row."""

    @classmethod
    def concatenate(cls, parts: "Sequence[RowColumns]") -> "RowColumns":
        """The columns of all rows of `parts`, in order."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def take(self, index: np.ndarray) -> "RowColumns":
        """The columns of the rows with these indices."""
        return RowColumns(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


_COLUMN_TYPES = {"num_supervised": "int32", "full_length": "int32", "flags": "uint8", "digest": "uint64"}
_COLUMN_TYPES |= {"number": "int64", "file": "int32", "line": "int64", "part": "int32", "piece": "int32"}


class RowWriter:
    """Writes prepared rows to an Arrow file, one batch at a time. A context manager.

    Weights are in a file of their own, which exists only if a row has any.
    """

    def __init__(self, path: Path):
        lists = pyarrow.large_list(pyarrow.int32())
        columns = [("input_ids", lists), ("labels", lists)]
        columns += [(name, getattr(pyarrow, kind)()) for name, kind in _COLUMN_TYPES.items()]
        self._schema = pyarrow.schema(columns)
        self._path = path
        self._weights: WeightWriter | None = None
        self._batches = 0

    def __enter__(self) -> "RowWriter":
        # As bytes: pyarrow does not accept a str path that is not valid UTF-8.
        self._file = pyarrow.OSFile(os.fsencode(self._path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._writer.close()
        if self._weights is not None:
            self._weights.close()

    def write(
        self,
        input_ids: np.ndarray,
        labels: np.ndarray,
        lengths: np.ndarray,
        columns: RowColumns,
        weights: np.ndarray | None = None,
    ) -> None:
        """Append rows.

        Args:
            input_ids, labels: int32, the tokens of all rows concatenated.
            lengths: Number of tokens of each row, `[R]`.
            columns: The other columns of these rows.
            weights: float32, of each token in the loss; None where none of these rows has any.
        """
        if weights is not None:
            self._weights = self._weights or WeightWriter(self._path)
            self._weights.write(self._batches, weights, labels, lengths)
        self._batches += 1
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        lists = [
            pyarrow.LargeListArray.from_arrays(_as_arrow(offsets, "int64"), _as_arrow(values, "int32"))
            for values in (input_ids, labels)
        ]
        plain = [_as_arrow(getattr(columns, name), kind) for name, kind in _COLUMN_TYPES.items()]
        self._writer.write_batch(pyarrow.record_batch([*lists, *plain], schema=self._schema))


def _as_arrow(values: np.ndarray, kind: str) -> pyarrow.Array:
    """The numbers as Arrow's type of that name, not copied if they have it. `pyarrow.array` would import pandas."""
    values = np.ascontiguousarray(values, dtype=kind)
    return pyarrow.Array.from_buffers(getattr(pyarrow, kind)(), len(values), [None, pyarrow.py_buffer(values)])


def _as_numpy(values: pyarrow.Array, kind: str) -> np.ndarray:
    """The numbers of an Arrow array, in place and read-only. Its `to_numpy` would import pandas."""
    if not len(values):
        return np.zeros(0, dtype=kind)
    found = np.frombuffer(values.buffers()[1], dtype=kind, count=len(values) + values.offset)
    return found[values.offset :]


class StoredRows:
    """The rows of one Arrow file, in the order in which they were written."""

    def __init__(self, path: str | Path):
        self._path = str(path)
        # The arrays taken from the memory map keep it open.
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(os.fsencode(self._path)))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._batches = [
            tuple(
                (_as_numpy(column.offsets, "int64"), _as_numpy(column.values, "int32"))
                for column in (batch.column("input_ids"), batch.column("labels"))
            )
            for batch in batches
        ]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.weights = read_weights(self._path, self._starts)
        """The weights of its rows; None if no row has any."""
        self._columns = [
            RowColumns(**{name: _as_numpy(batch.column(name), kind) for name, kind in _COLUMN_TYPES.items()})
            for batch in batches
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the path: each worker process maps the file itself."""
        return type(self), (self._path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        inside = row - int(self._starts[batch])
        values = {}
        for name, (offsets, tokens) in zip(("input_ids", "labels"), self._batches[batch], strict=True):
            values[name] = tokens[offsets[inside] : offsets[inside + 1]]
        own = None if self.weights is None else self.weights.of_row(batch, inside)
        return values if own is None else values | {"weights": own}

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int64 `[R]`."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(batch[0][0]) for batch in self._batches)])

    @cached_property
    def columns(self) -> RowColumns:
        """The other columns of all rows."""
        empty = RowColumns(**{name: np.zeros(0, dtype=kind) for name, kind in _COLUMN_TYPES.items()})
        return RowColumns.concatenate([empty, *self._columns])


class PreparedRows:
    """A selection of rows of one or several Arrow files, one file for each source. A row may be selected repeatedly.

    A row is `{"input_ids": ..., "labels": ...}`, int32 `[T]` each, read-only; with `weights` too, float32 `[T]`, where
    it was prepared together with a row that has weights in the loss.
    """

    def __init__(self, parts: Sequence[StoredRows], index: np.ndarray | None = None):
        """
        Args:
            parts: The rows of each source. Rows are numbered through all of them.
            index: Numbers of the selected rows, `[R]`; None for all rows.
        """
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.index = np.arange(self._starts[-1]) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        if row >= len(self.index):
            raise IndexError(row)
        source, own = self.locate(row)
        return self._parts[source][own]

    def locate(self, row: int) -> tuple[int, int]:
        """The index of the row's source, and the index of the row among the stored rows of that source."""
        number = int(self.index[row])
        source = int(np.searchsorted(self._starts, number, side="right")) - 1
        return source, number - int(self._starts[source])

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int64 `[R]`."""
        return np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in self._parts)])[self.index]

    def columns(self) -> RowColumns:
        """The other columns of the selected rows."""
        return RowColumns.concatenate([part.columns for part in self._parts]).take(self.index)

    def weights(self) -> WeightColumns | None:
        """What is stored of the weights of the selected rows; None if no row of any source has weights."""
        if all(part.weights is None for part in self._parts):
            return None
        of_parts = [
            WeightColumns.unweighted(len(part)) if part.weights is None else part.weights.columns
            for part in self._parts
        ]
        return WeightColumns.concatenate(of_parts).take(self.index)

    def source_indices(self) -> np.ndarray:
        """Index of the source of each row, int64 `[R]`."""
        return np.searchsorted(self._starts, self.index, side="right") - 1

    def select(self, rows: np.ndarray | Sequence[int]) -> "PreparedRows":
        """A selection of these rows, by index."""
        return PreparedRows(self._parts, self.index[np.asarray(rows, dtype=np.int64)])
