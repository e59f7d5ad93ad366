"""JSON files: JSON Lines as blocks of unparsed lines, arrays element by element."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from sft.common.errors import DataError
from sft.data.sources.chunks import Entries, JsonLines, RowBlock, entry_blocks, is_blank, line_blocks
from sft.data.sources.json_arrays import JsonWindow, array_entries, single_entry
from sft.data.sources.json_rows import json_complaint
from sft.data.sources.streams import DataFile, decode

ARRAY_NAMES = ("data", "rows", "train", "examples", "records", "items", "instances")
"""Fields of a JSON object that may hold the array of rows."""
_HEAD_BYTES = 1 << 20
"""Bytes that decide what a file holds: an array in one line may be the whole file."""
_LENIENT_DECODER = json.JSONDecoder()


def read_jsonl(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """One JSON object per line. Only a line feed ends a line: U+2028 and similar characters may occur in a text.

    A file that is one JSON array is read as an array in spite of its name.
    """
    head = file.head(_HEAD_BYTES)
    if head.lstrip()[:1] == b"[" and _is_array(file, head):
        yield from _read_array(file, head)
    else:
        yield from _unparsed_lines(file, file.lines_after(head))


def read_json(file: DataFile) -> Iterator[tuple[RowBlock, float]]:
    """An array of objects, an object like `{"data": [...]}` (see `ARRAY_NAMES`), or JSON Lines with a wrong suffix."""
    head = file.head(_HEAD_BYTES)
    if head.lstrip()[:1] == b"[":
        yield from _read_array(file, head)
        return
    lines = file.lines_after(head)
    held: list[bytes] = []
    starts: list[bytes] = []
    while len(starts) < 2 and (line := next(lines, None)) is not None:
        held.append(line)
        if not is_blank(line):
            starts.append(line)
    if len(starts) == 2 and _is_json_object(starts[0]):
        yield from _unparsed_lines(file, chain(held, lines))
    else:
        yield from _read_document(file, decode(file.path, b"".join(chain(held, lines))))


def _is_array(file: DataFile, head: bytes) -> bool:
    """Whether a file whose first character opens a list is one array; a list on a line of its own is a bad row."""
    first, _, rest = head.lstrip().partition(b"\n")
    first = first.strip()
    if first != b"[" and not first.startswith(b"[{"):
        return False
    second = rest.partition(b"\n")[0]
    return first.endswith((b"[", b",")) or is_blank(second) or second.lstrip().startswith((b",", b"]"))


def _read_array(file: DataFile, head: bytes) -> Iterator[tuple[RowBlock, float]]:
    window = JsonWindow(file.path, chain([head], file.blocks()))
    for block, _ in entry_blocks(file.name, array_entries(window, is_document=True)):
        yield block, file.share_read


def _unparsed_lines(file: DataFile, lines: Iterable[bytes]) -> Iterator[tuple[RowBlock, float]]:
    for first_line, block, num_rows in line_blocks(lines):
        data = b"".join(block)
        yield JsonLines(file=file.name, first_line=first_line, data=data, num_rows=num_rows), file.share_read


def _read_document(file: DataFile, text: str) -> Iterator[tuple[RowBlock, float]]:
    """A JSON object: the array of rows in it, or a single row."""
    start = _skip_space(text, 0)
    if start == len(text):
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{file.path}{line}: invalid JSON, {json_complaint(error)}.") from None
    names = [name for name in ARRAY_NAMES if isinstance(document, dict) and isinstance(document.get(name), list)]
    if len(names) != 1:
        yield Entries(file=file.name, lines=(1,), entries=(single_entry(text, start),)), 1.0
        return
    del document
    window = JsonWindow.of_text(file.path, text, _start_of_value(text, start, names[0]))
    for block, reached in entry_blocks(file.name, array_entries(window)):
        yield block, reached / len(text)


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


def _is_json_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
