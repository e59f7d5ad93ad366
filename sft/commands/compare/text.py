"""A comparison of runs as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.commands.compare.comparison import ComparedRow, Comparison
from sft.common.text import WIDTH, columns, printable, wrapped

MAX_CELL_LENGTH = 40
_BEST = "*"


def comparison_lines(comparison: Comparison) -> list[str]:
    """Format the differences, the results and the warnings; `*` marks the best value of a row."""
    lines = [*_section("Settings that differ", comparison.names, comparison.settings, "none")]
    lines += _section("Data that differs", comparison.names, comparison.data, "none: counts and digests are the same")
    lines += _section(f"Results ({_BEST}: best)", comparison.names, comparison.results, "none")
    for warning in comparison.warnings:
        lines += ["", *wrapped(warning, first="! ", rest="  ")]
    return lines[1:]


def _section(title: str, names: Sequence[str], rows: Sequence[ComparedRow], if_empty: str) -> Iterator[str]:
    yield ""
    if not rows:
        yield f"{title}: {if_empty}."
        return
    yield title
    label_width = max(columns(_shorten(row.name)) for row in rows)
    widths = [
        max(columns(_shorten(name)), *(columns(_shorten(row.cells[index])) + 1 for row in rows))
        for index, name in enumerate(names)
    ]
    for group in _groups(widths, WIDTH - label_width - 2):
        header = "".join(_align_right(_shorten(names[index]), widths[index]) for index in group)
        yield "  " + " " * label_width + header
        for row in rows:
            cells = (_shorten(row.cells[index]) + (_BEST if index in row.best else " ") for index in group)
            line = "".join(_align_right(cell, widths[index]) for cell, index in zip(cells, group, strict=True))
            yield f"  {_align_left(_shorten(row.name), label_width)}{line}".rstrip()


def _groups(widths: Sequence[int], available: int) -> Iterator[list[int]]:
    """Yield the indices of columns that fit side by side into the available width."""
    group: list[int] = []
    used = 0
    for index, width in enumerate(widths):
        if group and used + width + 2 > available:
            yield group
            group, used = [], 0
        group.append(index)
        used += width + 2
    yield group


def _shorten(text: str) -> str:
    line = printable(text)
    if len(line) <= MAX_CELL_LENGTH:
        return line
    return f"{line[: MAX_CELL_LENGTH // 2 - 2]}...{line[-MAX_CELL_LENGTH // 2 + 1 :]}"


def _align_right(text: str, width: int) -> str:
    return "  " + " " * (width - columns(text)) + text


def _align_left(text: str, width: int) -> str:
    return text + " " * (width - columns(text))
