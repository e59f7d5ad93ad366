"""Words and numbers as a person reads them in a terminal."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterable

WIDTH = 100
"""Columns of a line, where nothing in it is longer."""

NOTES = {
    "thoughts_left_out": "the chat template leaves out thoughts in {rows}; they are not trained",
    "prompt_goes_further": "the generation prompt goes further (<think>, say) than {rows}: in use, the model answers "
    "behind something that it did not see in training",
    "content_left_out": "the chat template leaves out the text beside tool calls in {rows}; it is not trained",
    "tools_left_out": "the chat template does not write the tools of {rows}; the model does not see them",
}
"""Note of the renderer -> what it means."""

# Control characters, invisible ones (marks that turn the writing's direction are among them), halves of surrogate
# pairs, and what breaks a line: in a terminal these act, or hide, in place of being read.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SHORT_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_NOT_ON_PAGES = {"Cc", "Cs", "Zl", "Zp"}
# Marks that change the direction of what follows can make a text, or a path, look like another one.
_DIRECTION_MARKS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text with everything that is not seen, or would act on the terminal, written out: `\\x1b`."""
    return "".join(escaped(character) for character in text) if not text.isascii() or not text.isprintable() else text


def escaped(character: str) -> str:
    """The character, or how it is written out if it cannot be shown."""
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
    """Columns that printable text takes: two for East Asian wide characters, none for marks over a letter."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(character) in ("Mn", "Me") else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def wrapped(text: str, *, first: str = "", rest: str = "") -> list[str]:
    """The text in lines of at most `WIDTH` columns; a word that is longer stays whole.

    Args:
        text: without line breaks of its own.
        first: what stands before the first line.
        rest: what stands before all others.
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
    """A share as `share_text` shows it; 0% of nothing."""
    return share_text(part / whole) if whole else "0%"


def share_text(value: float, sign: str = "") -> str:
    """`84.5%`; `99.97%` where one digit would claim all, or nothing, and that is not so, and `>99.99%` beyond that.

    Args:
        value: 1 for all.
        sign: `+` for a change, which shows its sign in any case.
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
    """A relative change, or a difference of shares, with its sign: `-12.5%`, `-99.97%`, `+0.03%`."""
    return share_text(value, "+")


def size(num_bytes: int) -> str:
    """Bytes as GiB, or as MiB where that is less than one."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def first_of(items: Iterable[str], total: int) -> str:
    """A list of the first of `total` things, with dots where there are more."""
    shown = list(items)
    return ", ".join(shown) + (", ..." if total > len(shown) else "")


def note_text(note: str, num_rows: int) -> str:
    """A renderer's note as a sentence, without its full stop; a note that is not known here, by its name."""
    rows = counted(num_rows, "row")
    return NOTES[note].format(rows=rows) if note in NOTES else f"{note}: {rows}"
