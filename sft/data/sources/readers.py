"""Files to blocks of rows. A row that cannot be read is still a row, with its location and its problem.

A file that cannot be read (a broken archive, an array that is not JSON) is an error: the number of its rows is unknown,
so they could not be counted.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from sft.common.data_records import RowProblem
from sft.common.errors import DataError
from sft.data.sources.arrow_values import ArrowValues
from sft.data.sources.chunks import MAX_BYTES, MAX_ROWS, Entries, Entry, RowBlock, TextLines, entry_blocks, line_blocks
from sft.data.sources.files import DataPath, deciding_suffix, file_format
from sft.data.sources.json_files import read_json, read_jsonl
from sft.data.sources.json_rows import MAX_NESTING, checked_record, short_line
from sft.data.sources.streams import DataFile, open_data_file

_LARGEST_CSV_FIELD = min(sys.maxsize, 2**31 - 1)
_HELD_PARQUET_BYTES = 1 << 26
"""A compressed Parquet file is decompressed before it is read, in memory up to this size."""


def read_file(path: DataPath) -> Iterator[tuple[RowBlock, float]]:
    """The rows of a data file in order.

    Yields:
        A block of rows, and the share of the file read so far, 0 to 1.

    Raises:
        DataError: If the file cannot be read.
    """
    with open_data_file(path) as file:
        yield from _READERS[file_format(path)](file)


def _read_txt(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """Each line that is not blank is a row."""
    for first_line, lines, num_rows in line_blocks(file.text_lines()):
        text = "".join(lines)
        yield TextLines(file=file.name, first_line=first_line, text=text, num_rows=num_rows), file.share_read


def _read_csv(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """A header line, then one row per record. A quoted field may contain line ends; the line of a row is its first."""
    csv.field_size_limit(_LARGEST_CSV_FIELD)
    delimiter = "\t" if deciding_suffix(file.path) == ".tsv" else ","
    reader = csv.reader(_csv_lines(file.text_lines()), delimiter=delimiter, strict=True)
    for block, _ in entry_blocks(file.name, _csv_entries(file.path, reader, delimiter)):
        yield block, file.share_read


def _csv_entries(path: DataPath, reader: Any, delimiter: str) -> Iterator[tuple[int, Entry, int]]:
    header: list[str] = []
    line, reached = 1, 0
    try:
        for fields in reader:
            began, line = line, reader.line_num + 1
            if not fields:
                continue
            reached += sum(map(len, fields))
            if not header:
                header = [name.strip() for name in fields]
                _check_csv_header(f"{path}:{began}", header, delimiter)
            elif len(fields) == len(header):
                yield began, dict(zip(header, fields, strict=True)), reached
            else:
                message = f"{len(fields)} fields, but the header has {len(header)}"
                yield began, RowProblem(reason="wrong_number_of_fields", message=message), reached
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(f"{path}:{line}: not valid CSV: a quote opened in this row is never closed.") from None
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}.") from None


def _check_csv_header(location: str, header: list[str], delimiter: str) -> None:
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise DataError(f"{location}: fields seem to be separated by {other!r}. Separate them by {delimiter!r}.")
    if len(set(header)) < len(header):
        names = " ".join(", ".join(header).split())[:160]
        raise DataError(f"{location}: duplicate column name in the header: {names}.")


def _csv_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines as `csv.reader` needs them: a lone carriage return ends a line too."""
    for line in lines:
        if "\r" in line.removesuffix("\n").removesuffix("\r"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _read_parquet(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """The rows of a Parquet file. The line of a row is its number, from 1."""
    number = 0
    with tempfile.SpooledTemporaryFile(max_size=_HELD_PARQUET_BYTES) as decompressed:
        try:
            # Parquet is read from its end: a compressed stream, or one of a web server, is copied first.
            is_readable = file.stream is file.raw and file.raw.seekable()
            if not is_readable:
                shutil.copyfileobj(file.stream, decompressed)
            parquet = pyarrow.parquet.ParquetFile(file.raw if is_readable else decompressed)
            names = parquet.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{file.path}: duplicate column name: {', '.join(names)[:160]}.")
            values = ArrowValues(parquet.schema_arrow, parse_json=True)
            brackets = MAX_NESTING + 1 if values.parses_json else 0
            for batch in parquet.iter_batches(batch_size=MAX_ROWS):
                rows_at_once = max(1, len(batch) * MAX_BYTES // max(batch.nbytes, MAX_BYTES))
                for start in range(0, len(batch), rows_at_once):
                    records = batch.slice(start, rows_at_once).to_pylist()
                    lines = range(number + 1, number + len(records) + 1)
                    number += len(records)
                    entries = [checked_record(values(record), num_brackets=brackets) for record in records]
                    block = Entries(file=file.name, lines=lines, entries=entries)
                    yield block, number / parquet.metadata.num_rows
        except (pyarrow.ArrowException, ValueError, OverflowError) as error:
            raise DataError(f"{file.path}: not a readable Parquet file: {short_line(error)}.") from None


_READERS: dict[str | None, Callable[[DataFile], Iterator[tuple[RowBlock, float]]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": _read_csv,
    "txt": _read_txt,
    "parquet": _read_parquet,
}
