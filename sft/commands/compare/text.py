"""A comparison of runs as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.commands.compare.comparison import ComparedRow, Comparison
from sft.common.text import WIDTH, columns, printable, wrapped

LONGEST_CELL = 40
_BEST = "*"


def comparison_lines(comparison: Comparison) -> list[str]:
    """What differed, what came of it, and what cannot be compared; `*` is the best of a line."""
    lines = [*_section("Settings that differ", comparison.names, comparison.settings, "none")]
    lines += _section("Data that differs", comparison.names, comparison.data, "none: counts and digests are the same")
    lines += _section(f"Figures ({_BEST}: the best)", comparison.names, comparison.figures, "none")
    for warning in comparison.warnings:
        lines += ["", *wrapped(warning, first="! ", rest="  ")]
    return lines[1:]


def _section(title: str, names: Sequence[str], rows: Sequence[ComparedRow], otherwise: str) -> Iterator[str]:
    yield ""
    if not rows:
        yield f"{title}: {otherwise}."
        return
    yield title
    label = max(columns(_cut(row.name)) for row in rows)
    widths = [
        max(columns(_cut(name)), *(columns(_cut(row.cells[place])) + 1 for row in rows))
        for place, name in enumerate(names)
    ]
    for places in _groups(widths, WIDTH - label - 2):
        yield "  " + " " * label + "".join(_right(_cut(names[place]), widths[place]) for place in places)
        for row in rows:
            cells = (_cut(row.cells[place]) + (_BEST if place in row.best else " ") for place in places)
            line = "".join(_right(cell, widths[place]) for cell, place in zip(cells, places, strict=True))
            yield f"  {_left(_cut(row.name), label)}{line}".rstrip()


def _groups(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns that stand side by side: as many as there is room for."""
    group: list[int] = []
    used = 0
    for place, width in enumerate(widths):
        if group and used + width + 2 > room:
            yield group
            group, used = [], 0
        group.append(place)
        used += width + 2
    yield group


def _cut(text: str) -> str:
    line = printable(text)
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL // 2 - 2]}...{line[-LONGEST_CELL // 2 + 1 :]}"


def _right(text: str, width: int) -> str:
    return "  " + " " * (width - columns(text)) + text


def _left(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
