"""Prepared rows in memory-mapped Arrow files."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from sft.data.store import PreparedRows, RowColumns, RowWriter, StoredRows


def columns_of(count, first=0):
    numbers = np.arange(first, first + count)
    return RowColumns(
        num_supervised=(numbers % 7).astype(np.int32),
        full_length=(numbers + 2).astype(np.int32),
        flags=(numbers % 32).astype(np.uint8),
        digest=numbers.astype(np.uint64) + np.uint64(2**63),
        number=(numbers + 1).astype(np.int64),
        file=np.full(count, 3, dtype=np.int32),
        line=(numbers + 2**33).astype(np.int64),
        part=(numbers % 3).astype(np.int32),
        piece=(numbers % 5).astype(np.int32),
    )


def write_rows(path, batches):
    """A file with a batch of rows for each list of lists of tokens; labels are the tokens and 1000."""
    with RowWriter(path) as writer:
        first = 0
        for rows in batches:
            tokens = np.asarray([token for row in rows for token in row], dtype=np.int32)
            lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
            writer.write(tokens, tokens + 1000, lengths, columns_of(len(rows), first))
            first += len(rows)
    return path


BATCHES = [[[1, 2, 3], [4]], [[5, 6]], [[], [7, 8, 9, 10], [11]]]


ROWS = [row for batch in BATCHES for row in batch]


def tokens_of(rows):
    return [row["input_ids"].tolist() for row in rows]


def test_stored_rows_are_those_that_were_written(tmp_path):
    rows = StoredRows(write_rows(tmp_path / "rows.arrow", BATCHES))
    assert len(rows) == 6
    assert [rows[i]["input_ids"].tolist() for i in range(6)] == ROWS
    assert [rows[i]["labels"].tolist() for i in range(6)] == [[token + 1000 for token in row] for row in ROWS]
    assert rows.lengths.tolist() == [3, 1, 2, 0, 4, 1]
    written, read = columns_of(6), rows.columns
    for name in RowColumns.__slots__:
        assert getattr(read, name).tolist() == getattr(written, name).tolist(), name
        assert getattr(read, name).dtype == getattr(written, name).dtype, name
    assert rows[0]["input_ids"].dtype == rows[0]["labels"].dtype == np.int32


def test_stored_rows_of_an_empty_file(tmp_path):
    rows = StoredRows(write_rows(tmp_path / "rows.arrow", []))
    assert (len(rows), rows.lengths.tolist(), rows.columns.digest.tolist()) == (0, [], [])
    assert (rows.lengths.dtype, rows.columns.digest.dtype) == (np.int64, np.uint64)
    chosen = PreparedRows([rows])
    assert (len(chosen), chosen.lengths.tolist(), chosen.source_indices().tolist(), list(chosen)) == (0, [], [], [])
    assert len(chosen.columns().line) == 0


def test_prepared_rows_count_through_several_files(tmp_path):
    first = StoredRows(write_rows(tmp_path / "a.arrow", BATCHES[:1]))
    empty = StoredRows(write_rows(tmp_path / "b.arrow", []))
    last = StoredRows(write_rows(tmp_path / "c.arrow", BATCHES[1:]))
    rows = PreparedRows([first, empty, last])
    assert tokens_of(rows) == ROWS
    assert rows.source_indices().tolist() == [0, 0, 2, 2, 2, 2]
    assert rows.lengths.tolist() == [3, 1, 2, 0, 4, 1]
    assert rows.columns().number.tolist() == [1, 2, 1, 2, 3, 4]


def test_prepared_rows_select_by_their_own_indices(tmp_path):
    rows = PreparedRows([StoredRows(write_rows(tmp_path / "rows.arrow", BATCHES))])
    twice = rows.select(np.asarray([5, 0, 0, 2]))
    assert tokens_of(twice) == [[11], [1, 2, 3], [1, 2, 3], [5, 6]]
    assert twice.lengths.tolist() == [1, 3, 3, 2]
    assert twice.columns().number.tolist() == [6, 1, 1, 3]
    assert tokens_of(twice.select(np.asarray([3, 1]))) == [[5, 6], [1, 2, 3]]
    assert tokens_of(rows.select(np.asarray([], dtype=np.int64))) == []
    with pytest.raises(IndexError):
        twice[4]


def test_prepared_rows_are_pickled_as_the_path_of_their_file(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", [[[7] * 100_000]])
    rows = PreparedRows([StoredRows(path)]).select(np.asarray([0, 0]))
    assert rows.lengths.tolist() == [100_000, 100_000]
    data = pickle.dumps(rows)
    assert len(data) < 2_000
    assert tokens_of(pickle.loads(data)) == [[7] * 100_000] * 2


def test_stored_rows_are_mapped_and_not_loaded(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", [np.zeros((50, 20_000), dtype=np.int32)] * 10)
    before = pyarrow.total_allocated_bytes()
    rows = StoredRows(path)
    held = [rows[i] for i in range(len(rows))]
    assert pyarrow.total_allocated_bytes() - before < 100_000
    first, again = rows[3]["input_ids"], rows[3]["input_ids"]
    assert np.shares_memory(first, again)
    assert not first.flags.writeable
    address = held[-1]["labels"].__array_interface__["data"][0]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("rows.arrow")]
    edges = [[int(edge, 16) for edge in fields[0].split("-")] for fields in maps]
    assert any(start <= address < end for start, end in edges)


def test_stored_rows_of_a_deleted_file_stay_readable(tmp_path):
    path = write_rows(tmp_path / "rows.arrow", BATCHES)
    rows = StoredRows(path)
    path.unlink()
    assert tokens_of(PreparedRows([rows])) == ROWS
