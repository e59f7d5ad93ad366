"""A comparison of runs as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sft.commands.compare.comparison import ComparedRow, Comparison
from sft.common.text import WIDTH, columns, printable, wrapped

if TYPE_CHECKING:
    from sft.processes.live_line import LiveLine

MAX_CELL_LENGTH = 40
_BEST = "*"


def comparison_lines(comparison: Comparison, terminal: "LiveLine | None" = None) -> list[str]:
    """Format the differences, the results and the warnings; `*` marks the best value of a row.

    Args:
        comparison: of runs.
        terminal: draws the tables; None: plain lines.
    """
    sections = (
        ("Settings that differ", comparison.settings, "none"),
        ("Data that differs", comparison.data, "none: counts and digests are the same"),
        (f"Results ({_BEST}: best)", comparison.results, "none"),
    )
    lines: list[str] = []
    for title, rows, if_empty in sections:
        if not rows:
            lines += ["", f"{title}: {if_empty}."]
        elif terminal is None:
            lines += _plain_table(title, comparison.names, rows)
        else:
            lines += _drawn_tables(title, comparison.names, rows, terminal)
    for warning in comparison.warnings:
        lines += ["", *wrapped(warning, first="! ", rest="  ")]
    return lines[1:]


def _plain_table(title: str, names: Sequence[str], rows: Sequence[ComparedRow]) -> Iterator[str]:
    yield from ("", title)
    label_width, widths = _widths(names, rows)
    for group in _groups(widths, WIDTH - label_width - 2):
        header = "".join(_align_right(_shorten(names[index]), widths[index]) for index in group)
        yield "  " + " " * label_width + header
        for row in rows:
            line = "".join(_align_right(_cell(row, index), widths[index]) for index in group)
            yield f"  {_align_left(_shorten(row.name), label_width)}{line}".rstrip()


def _drawn_tables(title: str, names: Sequence[str], rows: Sequence[ComparedRow], terminal: "LiveLine") -> Iterator[str]:
    """A table for each group of runs that fit side by side."""
    label_width, widths = _widths(names, rows)
    for group in _groups(widths, terminal.columns - label_width - 2):
        header = ["", *(f"{_shorten(names[index])} " for index in group)]  # above cells that end in the mark
        cells = ([_shorten(row.name), *(_cell(row, index) for index in group)] for row in rows)
        yield from ("", *terminal.table(title, header, list(cells)))


def _widths(names: Sequence[str], rows: Sequence[ComparedRow]) -> tuple[int, list[int]]:
    """Columns of the rows' names, and of each run."""
    widths = [
        max(columns(_shorten(name)), *(columns(_shorten(row.cells[index])) + 1 for row in rows))
        for index, name in enumerate(names)
    ]
    return max(columns(_shorten(row.name)) for row in rows), widths


def _cell(row: ComparedRow, index: int) -> str:
    return _shorten(row.cells[index]) + (_BEST if index in row.best else " ")


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
