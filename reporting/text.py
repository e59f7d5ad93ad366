"""Words and numbers as a person reads them in a terminal."""

from __future__ import annotations

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


def printable(text: str) -> str:
    """The text with everything that is not seen, or would act on the terminal, written out: `\\x1b`."""
    return "".join(escaped(character) for character in text) if not text.isascii() or not text.isprintable() else text


def escaped(character: str) -> str:
    """The character, or how it is written out if it cannot be shown."""
    if unicodedata.category(character) not in _UNPRINTABLE:
        return character
    number = ord(character)
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
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
    """A share with one digit behind the point; 0% of nothing."""
    return f"{part / whole:.1%}" if whole else "0%"


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
