"""The weights of prepared rows in the loss, in an Arrow file beside theirs that exists only where a row has any.

Shapes: `R` rows, `T` tokens of a row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow

from sft.common.data_records import IGNORED

_COLUMN_TYPES = {"num_weighted": "int32", "num_prompt": "int32", "lowest": "float32", "highest": "float32"}
_LISTS = pyarrow.large_list(pyarrow.float32())
_SCHEMA = pyarrow.schema(
    [("weights", _LISTS), *((name, pyarrow.from_numpy_dtype(kind)) for name, kind in _COLUMN_TYPES.items())]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightColumns:
    """What is stored of each row besides its weights: arrays `[R]`."""

    num_weighted: np.ndarray
    """int32: supervised tokens whose weight is not 1."""
    num_prompt: np.ndarray
    """int32: other tokens that are trained."""
    lowest: np.ndarray
    """float32, as the next one: of the supervised tokens."""
    highest: np.ndarray

    @classmethod
    def unweighted(cls, num_rows: int) -> WeightColumns:
        """Of rows without weights."""
        zeros, ones = np.zeros(num_rows, np.int32), np.ones(num_rows, np.float32)
        return cls(num_weighted=zeros, num_prompt=zeros, lowest=ones, highest=ones)

    @classmethod
    def of(cls, weights: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> WeightColumns:
        """Of rows whose tokens are concatenated. Every row has a supervised token besides its first."""
        starts = np.cumsum(lengths) - lengths
        is_answer = labels != IGNORED
        is_answer[starts] = False  # nothing predicts it
        is_trained = weights > 0
        is_trained[starts] = False

        def count(chosen: np.ndarray) -> np.ndarray:
            return np.add.reduceat(chosen, starts, dtype=np.int32)

        return cls(
            num_weighted=count(is_answer & (weights != 1)),
            num_prompt=count(is_trained & ~is_answer),
            lowest=np.minimum.reduceat(np.where(is_answer, weights, np.float32(np.inf)), starts),
            highest=np.maximum.reduceat(np.where(is_answer, weights, np.float32(0)), starts),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[WeightColumns]) -> WeightColumns:
        """The columns of all rows of `parts`, in order."""
        return cls(**{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)})

    def take(self, index: np.ndarray) -> WeightColumns:
        """The columns of the rows with these indices."""
        return WeightColumns(**{each.name: getattr(self, each.name)[index] for each in fields(self)})


class WeightWriter:
    """Writes the weights of the batches that have any; the others are empty batches of this file."""

    def __init__(self, rows: Path):
        """
        Args:
            rows: The file of the rows.
        """
        self._file = pyarrow.OSFile(os.fsencode(_weights_path(rows)), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, _SCHEMA)
        self._batches = 0

    def write(self, batch: int, weights: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> None:
        """Append the weights of rows.

        Args:
            batch: Number of their batch in the file of the rows.
            weights: float32, of all their tokens, concatenated, as are `labels`.
            labels: int32.
            lengths: Number of tokens of each row, `[R]`.
        """
        while self._batches < batch:
            self._writer.write_batch(pyarrow.record_batch([pyarrow.array([], f.type) for f in _SCHEMA], schema=_SCHEMA))
            self._batches += 1
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        columns = WeightColumns.of(weights, labels, lengths)
        arrays = [pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(weights))]
        arrays += [pyarrow.array(getattr(columns, name)) for name in _COLUMN_TYPES]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=_SCHEMA))
        self._batches += 1

    def close(self) -> None:
        """Complete the file."""
        with self._file:
            self._writer.close()


class StoredWeights:
    """The weights of the rows of one file."""

    def __init__(self, path: Path, batch_sizes: Sequence[int]):
        """
        Args:
            path: The file.
            batch_sizes: Number of rows of each batch of the file of the rows.
        """
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(os.fsencode(path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._sizes = batch_sizes
        lists = (batch.column("weights") for batch in self._batches)
        self._weights = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in lists]

    def of_row(self, batch: int, inside: int) -> np.ndarray | None:
        """The weights of a row by the number of its batch and its own in that, float32 `[T]`; None without any."""
        if batch >= len(self._batches) or not self._batches[batch].num_rows:
            return None
        offsets, values = self._weights[batch]
        return values[offsets[inside] : offsets[inside + 1]]

    @cached_property
    def columns(self) -> WeightColumns:
        """The other columns of all rows."""
        parts = []
        for number, size in enumerate(self._sizes):
            batch = self._batches[number] if number < len(self._batches) else None
            if batch is None or not batch.num_rows:
                parts.append(WeightColumns.unweighted(size))
            else:
                parts.append(WeightColumns(**{name: batch.column(name).to_numpy() for name in _COLUMN_TYPES}))
        return WeightColumns.concatenate(parts)


def read_weights(rows: str | Path, starts: np.ndarray) -> StoredWeights | None:
    """The weights beside a file of rows; None if they have none.

    Args:
        rows: The file of the rows.
        starts: Number of the first row of each of its batches, and of all rows.
    """
    path = _weights_path(rows)
    return StoredWeights(path, np.diff(starts).tolist()) if path.exists() else None


def _weights_path(rows: str | Path) -> Path:
    return Path(rows).with_suffix(".weights.arrow")
