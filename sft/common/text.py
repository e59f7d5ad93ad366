"""Formatting of text and numbers for the terminal."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterable

WIDTH = 100
"""Maximum width of a line, in columns, except for words that are longer."""

NOTES = {
    "thoughts_left_out": "the chat template omits the reasoning in {rows}; it is not trained",
    "prompt_goes_further": "the generation prompt contains more (e.g. <think>) than the text before the answer in "
    "{rows}: at inference, the model continues text that it did not see in training",
    "content_left_out": "the chat template omits the text beside tool calls in {rows}; it is not trained",
    "tools_left_out": "the chat template omits the tools of {rows}; the model does not see them",
}
"""Note of the renderer -> its meaning."""

# Control and format characters (such as changes of writing direction), unpaired surrogates and line separators, which
# are invisible or control the terminal.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SHORT_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_NOT_ON_PAGES = {"Cc", "Cs", "Zl", "Zp"}
# Marks that change the direction of what follows can make a text, or a path, look like another one.
_DIRECTION_MARKS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Escape invisible characters and those that control the terminal: `\\x1b`."""
    return "".join(escaped(character) for character in text) if not text.isascii() or not text.isprintable() else text


def visible(text: str) -> str:
    """The text of several lines with the same escapes as `printable`, except for line breaks and tabs."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in "\n\t" else escaped(character) for character in text)


def escaped(character: str) -> str:
    """The character, or its escape sequence if it is not printable."""
    if unicodedata.category(character) not in _UNPRINTABLE:
        return character
    return _SHORT_ESCAPES.get(character) or _written_out(character)


def reveal(text: str) -> str:
    """The text for a page: control characters, and marks that reorder what follows them, are written out: `\\u202e`.

    Unlike `printable`, line breaks, tabs and the joiners inside emoji stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _written_out(character) if character not in "\n\t" and _is_hidden(character) else character
        for character in text
    )


def _is_hidden(character: str) -> bool:
    is_noncharacter = ord(character) & 0xFFFE == 0xFFFE
    return unicodedata.category(character) in _NOT_ON_PAGES or character in _DIRECTION_MARKS or is_noncharacter


def _written_out(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def columns(text: str) -> int:
    """Width of printable text in columns: two for East Asian wide characters, zero for combining marks."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def wrapped(text: str, *, first: str = "", rest: str = "") -> list[str]:
    """Wrap text into lines of at most `WIDTH` columns, without breaking words.

    Args:
        text: without line breaks.
        first: indentation of the first line.
        rest: indentation of the other lines.
    """
    lines = textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def counted(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`, `2 processes`."""
    plural = noun if number == 1 else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {plural}"


def percent(part: int, whole: int) -> str:
    """`part / whole` formatted by `share_text`; 0% if `whole` is 0."""
    return share_text(part / whole) if whole else "0%"


def share_text(value: float, sign: str = "") -> str:
    """Format a share as a percentage: `84.5%`.

    Values that would be rounded to 0 % or 100 % get another digit (`99.97%`), or a bound (`>99.99%`).

    Args:
        value: 1 is 100 %.
        sign: `+` to always show the sign.
    """
    short, exact = f"{value:{sign}.1%}", f"{value:{sign}.2%}"
    if short.strip("+-") not in ("0.0%", "100.0%") or value in (-1, 0, 1) or abs(value) > 1:
        return short
    if exact.strip("+-") not in ("0.00%", "100.00%"):
        return exact
    nearly_all = abs(value) > 0.5
    mark = ">" if nearly_all == (value > 0) else "<"
    return f"{mark}{math.copysign(0.9999 if nearly_all else 0.0001, value):{sign}.2%}"


def change_text(value: float) -> str:
    """Format a relative change or a difference of shares: `-12.5%`, `+0.03%`."""
    return share_text(value, "+")


def size(num_bytes: int) -> str:
    """Format bytes in GiB, or in MiB below 1 GiB."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def first_of(items: Iterable[str], total: int) -> str:
    """Join items with commas, followed by `...` if they are fewer than `total`."""
    shown = list(items)
    return ", ".join(shown) + (", ..." if total > len(shown) else "")


def note_text(note: str, num_rows: int) -> str:
    """Describe a note of the renderer, without a full stop; an unknown note by its name."""
    rows = counted(num_rows, "row")
    return NOTES[note].format(rows=rows) if note in NOTES else f"{note}: {rows}"
