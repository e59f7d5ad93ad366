"""HTML and SVG from Python: what is not markup already is escaped, so that text out of someone's data stays text."""

from __future__ import annotations

import html
import unicodedata
from typing import Any

_VOID = {"meta", "br", "hr", "line", "rect", "circle", "path", "polyline"}
"""Elements without content, closed at once: the page is well-formed XML too."""
# Marks that turn the direction of what follows could show a text, or a path, as another one.
_DIRECTION_MARKS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Markup(str):
    """Text that is markup. Everything else is text to be shown."""


def element(name: str, /, *content: Any, **attributes: Any) -> Markup:
    """An element. Content and attributes are escaped, unless they are markup.

    Args:
        name: of the element.
        content: texts, numbers, markup; None is left out.
        attributes: a trailing underscore is cut off (`class_`), other underscores become hyphens; None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(shown(str(value)), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not content:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def joined(*content: Any) -> Markup:
    """Pieces one behind the other; what is not markup is escaped."""
    return Markup(
        "".join(
            piece if isinstance(piece, Markup) else html.escape(shown(str(piece)), quote=False)
            for piece in content
            if piece is not None
        )
    )


def shown(text: str) -> str:
    """The text with what no page may hold, or what would hide it, written out: `\\x1b`, `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in "\n\t" or not _is_hidden(character) else _written_out(character) for character in text
    )


def _is_hidden(character: str) -> bool:
    is_noncharacter = ord(character) & 0xFFFE == 0xFFFE
    return unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION_MARKS or is_noncharacter


def _written_out(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
