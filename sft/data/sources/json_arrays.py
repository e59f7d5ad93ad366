"""The elements of a JSON array, one after another: memory does not grow with the array."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sft.common.data_records import RowProblem
from sft.common.errors import DataError
from sft.data.sources.chunks import Entry
from sft.data.sources.json_rows import STRICT_DECODER, DuplicateField, checked_record, json_complaint
from sft.data.sources.streams import DataPath, decode

_LENIENT_DECODER = json.JSONDecoder()
_LONGEST_LITERAL = len("-Infinity")
"""A text that ends within a literal, a number or an escape is found to be wrong at most this far before its end."""
_SPACE = " \t\r\n"


class JsonWindow:
    """The part of a JSON text that is being parsed, with a position in it: text is read when it is needed, and dropped
    once it has been parsed."""

    def __init__(self, path: DataPath, blocks: Iterable[bytes]):
        """
        Args:
            path: For messages.
            blocks: The bytes of the text.
        """
        self.path = path
        self.text = ""
        self.position = 0
        self._blocks = iter(blocks)
        self._undecoded = b""
        self._is_complete = False
        self._dropped = 0
        self._lines_read = 1
        self._line, self._counted = 1, 0

    @classmethod
    def of_text(cls, path: DataPath, text: str, position: int) -> "JsonWindow":
        """A whole text, parsed from a position on."""
        window = cls(path, ())
        window.text, window.position, window._is_complete = text, position, True
        return window

    @property
    def reached(self) -> int:
        """Characters of the text before the position."""
        return self._dropped + self.position

    def line(self, position: int | None = None) -> int:
        """Line of the current position, or of one after it."""
        self._line += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._line + (0 if position is None else self.text.count("\n", self.position, position))

    def peek(self) -> str:
        """The next character that is not white space, where the position is then; empty at the end of the text."""
        while True:
            text, position = self.text, self.position
            while position < len(text) and text[position] in _SPACE:
                position += 1
            self.position = position
            if position < len(text) or not self._read_more():
                return self.text[self.position : self.position + 1]

    def take(self) -> str:
        """The next character that is not white space; the position is after it."""
        found = self.peek()
        self.position += len(found)
        return found

    def value(self) -> Entry:
        """The value at the position as a row; the position is after it.

        Raises:
            ValueError, RecursionError: If it is not valid JSON.
        """
        while True:
            try:
                entry, end = _entry(self.text, self.position)
            except json.JSONDecodeError as error:
                may_continue = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _LONGEST_LITERAL
                if not may_continue or not self._read_more():
                    raise
                continue
            # A number that ends with the text may continue: `12`, `12.`, `12e-`.
            if end >= len(self.text) - 2 and self.text[end - 1] not in '}]"' and self._read_more():
                continue
            self.position = end
            return entry

    def _read_more(self) -> bool:
        """Drop what was parsed, and read at least as much again as is left. Returns whether there was more.

        Raises:
            DataError: With the line of the first byte that is not UTF-8.
        """
        left, read, parts = len(self.text) - self.position, 0, [""]
        while read <= left and not self._is_complete:
            block = next(self._blocks, None)
            self._is_complete = block is None
            parts.append(self._decoded(block or b""))
            read += len(parts[-1])
        if read:
            self.line()
            parts[0] = self.text[self.position :]
            self._dropped += self.position
            self.position = self._counted = 0
            self.text = "".join(parts)
        return read > 0

    def _decoded(self, block: bytes) -> str:
        """The complete characters of the bytes read so far."""
        data = self._undecoded + block
        end = len(data)
        if not self._is_complete:
            # At most three bytes of a character may still have to come.
            while end > max(len(data) - 3, 0) and data[end - 1] & 0b1100_0000 == 0b1000_0000:
                end -= 1
            if end and data[end - 1] >= 0b1100_0000:
                end -= 1
            else:
                end = len(data)
        text = decode(self.path, data[:end], first_line=self._lines_read)
        self._lines_read += text.count("\n")
        self._undecoded = data[end:]
        return text


def array_entries(window: JsonWindow, *, is_document: bool = False) -> Iterator[tuple[int, Entry, int]]:
    """The elements of the JSON array at the position of a window.

    Args:
        window: The text. Read to the end of the array.
        is_document: Whether nothing may follow the array.

    Yields:
        The line on which an element begins, the element, and its end. In an array whose second element begins on the
        line of the first, elements are numbered instead of lines.

    Raises:
        DataError: If the text is not valid JSON, with the line and the number of the element.
    """
    window.take()
    numbered, held = False, None
    number, separator = 0, "," if window.peek() != "]" else window.take()
    while separator != "]":
        window.peek()
        line, number = window.line(), number + 1
        entry = _element(window, number)
        if number == 2:
            assert held is not None  # the first one
            numbered = line == held[0]
            yield (1, *held[1:]) if numbered else held
        end = window.reached
        separator = window.take()
        if separator not in (",", "]"):
            place = f"{window.path}:{window.line()}"
            raise DataError(f"{place}: invalid JSON after row {number}, expecting ',' or ']' in the list of rows.")
        held = (number if numbered else line, entry, end)
        if number > 1:
            yield held
    if number == 1 and held is not None:
        yield held
    if is_document and window.peek():
        raise DataError(f"{window.path}:{window.line()}: invalid JSON, unexpected text after the list of rows.")


def single_entry(text: str, start: int) -> Entry:
    """The value at a position of a valid JSON text as a row."""
    return _entry(text, start)[0]


def _element(window: JsonWindow, number: int) -> Entry:
    try:
        return window.value()
    except (ValueError, RecursionError) as error:
        place = f"{window.path}:{window.line(error.pos if isinstance(error, json.JSONDecodeError) else None)}"
        complaint = f"invalid JSON in row {number}, {json_complaint(error)}"
        raise DataError(f"{place}: {complaint}; the rows after it cannot be read.") from None


def _entry(text: str, start: int) -> tuple[Entry, int]:
    """The value at `start` as a row, and its end."""
    try:
        record, end = STRICT_DECODER.raw_decode(text, start)
    except DuplicateField as error:
        _, end = _LENIENT_DECODER.raw_decode(text, start)
        return RowProblem(reason="duplicate_field", message=str(error)), end
    return checked_record(record, num_brackets=text.count("[", start, end) + text.count("{", start, end)), end
