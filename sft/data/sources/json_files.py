"""JSON files: JSON Lines as blocks of unparsed lines, arrays element by element."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from sft.common.data_records import RowProblem
from sft.common.errors import DataError
from sft.data.sources.chunks import Entries, Entry, JsonLines, RowBlock, entry_blocks, is_blank, line_blocks
from sft.data.sources.json_rows import STRICT_DECODER, DuplicateField, checked_record, json_complaint
from sft.data.sources.streams import DataFile, decode

ARRAY_NAMES = ("data", "rows", "train", "examples", "records", "items", "instances")
"""Fields of a JSON object that may hold the array of rows."""
_LENIENT_DECODER = json.JSONDecoder()


def read_jsonl(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """One JSON object per line. Only a line feed ends a line: U+2028 and similar characters may occur in a text.

    A file that is one JSON array is read as an array in spite of its name.
    """
    lines = file.lines()
    head = [next(lines, b"")]
    first = head[0].strip()
    if first == b"[" or first.startswith(b"[{"):
        head.append(next(lines, b""))
        # If more follows the first element, the file is an array; a list on a line of its own is a bad row.
        if first.endswith((b"[", b",")) or is_blank(head[1]) or head[1].lstrip().startswith((b",", b"]")):
            yield from _read_document(file, _rest_as_text(file, head))
            return
    yield from _unparsed_lines(file, chain(head, lines))


def read_json(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """An array of objects, an object like `{"data": [...]}` (see `ARRAY_NAMES`), or JSON Lines with a wrong suffix."""
    lines = file.lines()
    head: list[bytes] = []
    starts: list[bytes] = []
    while len(starts) < 2 and (line := next(lines, None)) is not None:
        head.append(line)
        if not is_blank(line):
            starts.append(line)
    if len(starts) == 2 and _is_json_object(starts[0]):
        yield from _unparsed_lines(file, chain(head, lines))
    else:
        yield from _read_document(file, _rest_as_text(file, head))


def _unparsed_lines(file: DataFile, lines: Iterable[bytes]) -> Iterator[tuple[RowBlock, float]]:
    for first_line, block, num_rows in line_blocks(lines):
        data = b"".join(block)
        yield JsonLines(file=file.name, first_line=first_line, data=data, num_rows=num_rows), file.share_read


def _rest_as_text(file: DataFile, head: list[bytes]) -> str:
    return decode(file.path, b"".join([*head, file.stream.read()]))


def _read_document(file: DataFile, text: str) -> Iterator[tuple[RowBlock, float]]:
    """A JSON document: the array of rows, by itself or in an object; or a single row."""
    start = _skip_space(text, 0)
    if start == len(text):
        return
    if text[start] == "[":
        entries = _array_entries(file.path, text, start, is_document=True)
    else:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{_json_location(file.path, error)}: invalid JSON, {json_complaint(error)}.") from None
        names = [name for name in ARRAY_NAMES if isinstance(document, dict) and isinstance(document.get(name), list)]
        if len(names) != 1:
            yield Entries(file=file.name, lines=(1,), entries=(_array_entry(text, start)[0],)), 1.0
            return
        del document
        entries = _array_entries(file.path, text, _start_of_value(text, start, names[0]))
    for block, reached in entry_blocks(file.name, entries):
        yield block, reached / len(text)


def _array_entries(path: Path, text: str, start: int, *, is_document: bool = False) -> Iterator[tuple[int, Entry, int]]:
    """The elements of the JSON array at `start`: the line on which each begins, the element, and its end."""
    line, counted = 1, 0
    position = _skip_space(text, start + 1)
    separator = ""
    if text[position : position + 1] == "]":
        separator, position = "]", _skip_space(text, position + 1)
    while separator != "]":
        line += text.count("\n", counted, position)
        counted = position
        try:
            entry, position = _array_entry(text, position)
        except (ValueError, RecursionError) as error:
            location = _json_location(path, error, line)
            raise DataError(
                f"{location}: invalid JSON, {json_complaint(error)}; the rows after it cannot be read."
            ) from None
        yield line, entry, position
        position = _skip_space(text, position)
        separator = text[position : position + 1]
        position = _skip_space(text, position + 1)
        if separator not in (",", "]"):
            line = text.count("\n", 0, position) + 1
            raise DataError(f"{path}:{line}: invalid JSON, expecting ',' or ']' in the list of rows.")
    if is_document and position < len(text):
        line = text.count("\n", 0, position) + 1
        raise DataError(f"{path}:{line}: invalid JSON, unexpected text after the list of rows.")


def _array_entry(text: str, start: int) -> tuple[Entry, int]:
    """The value at `start` as a row, and its end."""
    try:
        record, end = STRICT_DECODER.raw_decode(text, start)
    except DuplicateField as error:
        _, end = _LENIENT_DECODER.raw_decode(text, start)
        return RowProblem(reason="duplicate_field", message=str(error)), end
    return checked_record(record, num_brackets=text.count("[", start, end) + text.count("{", start, end)), end


def _start_of_value(text: str, start: int, name: str) -> int:
    """Start of the value of a field in the text of the valid JSON object at `start`; the last one if it is repeated."""
    position, found = start, start
    while text[position] != "}":
        key, position = _LENIENT_DECODER.raw_decode(text, _skip_space(text, position + 1))
        position = _skip_space(text, _skip_space(text, position) + 1)
        if key == name:
            found = position
        _, position = _LENIENT_DECODER.raw_decode(text, position)
        position = _skip_space(text, position)
    return found


def _json_location(path: Path, error: Exception, line: int | None = None) -> str:
    line = error.lineno if isinstance(error, json.JSONDecodeError) else line
    return str(path) if line is None else f"{path}:{line}"


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
