"""Markdown from untrusted text: escaped text, code fences and tables, for every renderer that shows our files.

The files are read on GitHub, on the Hugging Face Hub, in TensorBoard (Python-Markdown) and in terminals. Punctuation
that all of them escape with a backslash gets one; the rest becomes a character reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sft.common.text import reveal

_REFERENCED = re.compile(r"[&<~$@]|:(?=//)")
"""HTML and character references, strikethrough, formulas, e-mail addresses, bare URLs."""
_BACKSLASHED = re.compile(
    r"[\\`*{}\[\]|]"  # code, emphasis, links and images, table cells
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis; an underscore between letters or digits is plain text
    r"|(?<=www)\."  # GitHub makes a link of a bare www. address
)
_BLOCK_START = re.compile(r"^(\d{0,9})([#>]|=+$|[+-](?=[\s-]|$)|(?<=\d)[.)](?=\s|$))")
"""Headings, quotations, lists and rules, which only the start of a line makes."""


class Markdown(str):
    """Text that already is Markdown. Any other string is text to escape."""


def escape_markdown(text: object) -> Markdown:
    """The text on one line, with nothing in it that Markdown or HTML acts on; `Markdown` is returned unchanged."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_BLOCK_START.sub(r"\1\\\2", _escaped_inline(text)))


def _escaped_inline(text: object) -> str:
    line = re.sub(r"[ \t\n]+", " ", reveal(str(text))).strip(" ")
    line = _BACKSLASHED.sub(lambda found: f"\\{found[0]}", line)
    return _REFERENCED.sub(lambda found: f"&#{ord(found[0])};", line)


def fenced(text: str, language: str = "text") -> Markdown:
    """A code block that shows text verbatim: its fence is longer than any run of backticks in the text."""
    shown = reveal(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{shown}\n{fence}")


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Markdown:
    """A table; its cells are escaped, unless they are `Markdown`."""
    lines = [_row(header), "|" + " --- |" * len(header), *map(_row, rows)]
    return Markdown("\n".join(lines))


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(cell if isinstance(cell, Markdown) else _escaped_inline(cell) for cell in cells) + " |"
