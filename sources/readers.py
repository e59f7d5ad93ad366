"""Files to rows. A row that cannot be read is still a row: it comes out with its place and its problem.

A whole file that cannot be read (a broken archive, an array that is not JSON) is an error: how many rows it held is
unknown, so they could not be counted.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sft_errors import DataError
from sft_types import RawRow, RowProblem, RowSource
from sources.files import file_format

ARRAY_NAMES = ("data", "rows", "train", "examples", "records", "items", "instances")
"""Names under which a JSON object may hold the array of its rows."""
_LARGEST_CSV_FIELD = min(sys.maxsize, 2**31 - 1)


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a data file in order.

    Raises:
        DataError: if the file as a whole cannot be read.
    """
    try:
        with _open_bytes(path) as stream:
            yield from _READERS[file_format(path)](path, stream)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}.") from None


def _open_bytes(path: Path) -> BinaryIO:
    ending = path.suffix.lower()
    if ending == ".gz":
        return gzip.open(path, "rb")
    if ending in (".zst", ".zstd"):
        return _open_zstandard(path)
    return path.open("rb")


def _open_zstandard(path: Path) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path}: .zst needs the package zstandard: pip install zstandard.") from None
    # An archive may hold several frames one behind the other; a frame that was cut off is silent unless asked for.
    data, parts = path.read_bytes(), []
    try:
        while data:
            frame = zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(data))
            if not frame.eof:
                raise DataError(f"{path}: cannot be read: the compressed file ends too early.")
            data = frame.unused_data
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: cannot be read: {_one_line(error)}.") from None
    return io.BytesIO(b"".join(parts))


def _read_jsonl(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """One JSON object a line. Only a line feed ends a line: U+2028 and its like may stand inside a text.

    A file that is one JSON array is read as such, though its name says otherwise.
    """
    first = stream.readline().removeprefix(b"\xef\xbb\xbf").strip()
    if first == b"[" or (first.startswith(b"[{") and not stream.readline().strip()):
        stream.seek(0)
        yield from _read_json(path, stream)
        return
    stream.seek(0)
    for number, line in enumerate(stream, start=1):
        if number == 1:
            _refuse_utf16(path, line)
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _parse_json_line(line, RowSource(file=str(path), line=number))


def _parse_json_line(line: bytes, source: RowSource) -> RawRow:
    try:
        record = json.loads(line.rstrip().decode("utf-8"), object_pairs_hook=_unique_fields)
    except _FieldTwice as error:
        return _bad(source, "duplicate_field", str(error))
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of the line"
        return _bad(source, "not_utf8", f"not UTF-8 text ({place}); save the file as UTF-8")
    except json.JSONDecodeError as error:
        return _bad(source, "invalid_json", f"invalid JSON, {_json_complaint(error)} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return _bad(source, "invalid_json", f"invalid JSON, {_json_complaint(error)}")
    return _checked(record, source)


def _read_json(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """An array of objects, `{"data": [...]}` (see `ARRAY_NAMES`), or in truth JSON Lines under the wrong name."""
    text = _decode(path, stream.read())
    start = _skip_space(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        yield from _read_json_array(path, text, start, is_whole=True)
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not _is_json_object(text[start:].partition("\n")[0]):
            raise DataError(f"{_json_place(path, error)}: invalid JSON, {_json_complaint(error)}.") from None
        yield from _read_jsonl(path, io.BytesIO(text.encode("utf-8")))
        return
    names = [name for name in ARRAY_NAMES if isinstance(document, dict) and isinstance(document.get(name), list)]
    if len(names) == 1:
        yield from _read_json_array(path, text, _start_of_value(text, start, names[0]))
    else:
        yield _checked(document, RowSource(file=str(path), line=1))


def _read_json_array(path: Path, text: str, start: int, *, is_whole: bool = False) -> Iterator[RawRow]:
    """The elements of the JSON array at `start`, each with the line on which it begins."""
    strict, lenient = json.JSONDecoder(object_pairs_hook=_unique_fields), json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, start + 1)
    separator = ""
    if text[position : position + 1] == "]":
        separator, position = "]", _skip_space(text, position + 1)
    while separator != "]":
        line += text.count("\n", counted, position)
        counted = position
        source = RowSource(file=str(path), line=line)
        try:
            record, position = strict.raw_decode(text, position)
            yield _checked(record, source)
        except _FieldTwice as error:
            yield _bad(source, "duplicate_field", str(error))
            _, position = lenient.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            place = _json_place(path, error, line)
            raise DataError(
                f"{place}: invalid JSON, {_json_complaint(error)}; the rows after it are unknown."
            ) from None
        position = _skip_space(text, position)
        separator = text[position : position + 1]
        position = _skip_space(text, position + 1)
        if separator not in (",", "]"):
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{path}:{line}: invalid JSON, expecting ',' or ']' in the list of rows.")
    if is_whole and position < len(text):
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{path}:{line}: invalid JSON, something stands behind the list of rows.")


def _start_of_value(text: str, start: int, name: str) -> int:
    """Where the value of a field begins in the text of a valid JSON object at `start`; of a name twice, the last."""
    decoder, position, found = json.JSONDecoder(), start, start
    while text[position] != "}":
        key, position = decoder.raw_decode(text, _skip_space(text, position + 1))
        position = _skip_space(text, _skip_space(text, position) + 1)
        if key == name:
            found = position
        _, position = decoder.raw_decode(text, position)
        position = _skip_space(text, position)
    return found


def _read_csv(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """A header line, then a row a record; a quoted field may hold line ends. Lines are counted where rows begin."""
    text = _decode(path, stream.read())
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    csv.field_size_limit(_LARGEST_CSV_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = next(reader, None)
        if header is None:
            return
        header = [name.strip() for name in header]
        if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
            raise DataError(f"{path}:1: fields seem to be separated by {other!r}. Separate them by {delimiter!r}.")
        if len(set(header)) < len(header):
            raise DataError(
                f"{path}:1: a column's name stands twice in the header: {' '.join(', '.join(header).split())[:160]}."
            )
        line = reader.line_num + 1
        for fields in reader:
            source, line = RowSource(file=str(path), line=line), reader.line_num + 1
            if not fields:
                continue
            if len(fields) != len(header):
                yield _bad(source, "wrong_number_of_fields", f"{len(fields)} fields, the header has {len(header)}")
            else:
                yield RawRow(source=source, record=dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(f"{path}:{line}: not valid CSV: a quote opened in this row is never closed.") from None
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}.") from None


def _read_txt(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """Each line that is not blank is a text of its own."""
    for number, line in enumerate(_decode(path, stream.read()).split("\n"), start=1):
        if line.strip():
            yield RawRow(source=RowSource(file=str(path), line=number), record={"text": line.rstrip("\r")})


def _read_parquet(path: Path, stream: BinaryIO) -> Iterator[RawRow]:
    """The rows of a Parquet file; the line is the row's number, from 1."""
    import pyarrow
    import pyarrow.parquet

    try:
        source = stream if path.suffix.lower() != ".parquet" else str(path)
        number = 0
        for batch in pyarrow.parquet.ParquetFile(source).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield _checked(record, RowSource(file=str(path), line=number))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read: {_one_line(error)}.") from None


_READERS: dict[str | None, Callable[[Path, BinaryIO], Iterator[RawRow]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "txt": _read_txt,
    "parquet": _read_parquet,
}


class _FieldTwice(ValueError):
    """An object names a field twice: which of both was meant?"""


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _FieldTwice(f"the field {twice[:40]!r} stands twice in one object")
    return record


def _checked(record: Any, source: RowSource) -> RawRow:
    if isinstance(record, dict):
        try:
            "".join(record).encode("utf-8")
        except UnicodeEncodeError:
            return _bad(source, "not_unicode", "a field's name holds half a surrogate pair, which is no character")
        return RawRow(source=source, record=record)
    kind = {list: "a list", str: "text", type(None): "null", bool: "true/false"}.get(type(record), "a number")
    return _bad(source, "not_an_object", f"expected an object with named fields, found {kind}")


def _bad(source: RowSource, reason: str, message: str) -> RawRow:
    return RawRow(source=source, problem=RowProblem(reason=reason, message=message))


def _decode(path: Path, data: bytes) -> str:
    """A whole file as text.

    Raises:
        DataError: with the line of the first byte that is not UTF-8.
    """
    _refuse_utf16(path, data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _refuse_utf16(path: Path, data: bytes) -> None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}:1: UTF-16 text. Save the file as UTF-8.")


def _json_complaint(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
    return "nested too deeply" if isinstance(error, RecursionError) else _one_line(error)


def _json_place(path: Path, error: Exception, line: int | None = None) -> str:
    line = error.lineno if isinstance(error, json.JSONDecodeError) else line
    return str(path) if line is None else f"{path}:{line}"


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160].rstrip(".")


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
