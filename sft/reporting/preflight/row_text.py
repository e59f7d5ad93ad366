"""A row's text in the terminal: what is trained stands out, and every character of it can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.common.data_records import Segment
from sft.common.text import columns, escaped

TRAINED_ON, TRAINED_OFF = "\x1b[30;42m", "\x1b[0m"
"""Black on green, and back."""
OPEN, CLOSE, LINE_BREAK = "⟦", "⟧", "⏎"

KEPT_TRAINED, KEPT_UNTRAINED = (300, 200), (240, 160)
"""Characters that are shown of a long stretch, at its start and at its end: the end token stands there."""
LEAST_LEFT_OUT = 40
"""Characters; to say that fewer are left out takes as much room as they do."""
KEPT_SEGMENTS = (4, 4)
LONGEST_WORD = 20
"""Columns that a line may leave empty rather than break a word."""

Piece = tuple[str, bool]
"""What is shown for one character, and whether that is trained."""


def row_lines(segments: Sequence[Segment], *, width: int, colour: bool) -> list[str]:
    """The row in lines of at most `width` columns.

    A line break in the text is shown as `⏎` and breaks the line. Trained text is green; without colour it stands
    between `⟦` and `⟧`. The middle of long stretches, and of rows of many stretches, is left out, which is said there.
    """
    return [
        _styled(line) if colour else "".join(shown for shown, _ in line) for line in _lines(segments, width, colour)
    ]


def _lines(segments: Sequence[Segment], width: int, colour: bool) -> Iterator[list[Piece]]:
    line: list[Piece] = []
    used, break_is_due = 0, False
    for piece in _pieces(segments, with_marks=not colour):
        shown = piece[0]
        if break_is_due and shown not in (LINE_BREAK, CLOSE):
            yield line
            line, used, break_is_due = [], 0, False
        if used + columns(shown) > width:
            # Behind the last space, if it is near; else wherever the line is full.
            space = max((i for i, (text, _) in enumerate(line) if text == " "), default=-1)
            cut = space + 1 if space >= len(line) - LONGEST_WORD and space >= 0 else len(line)
            yield line[:cut]
            line = line[cut:]
            used = sum(columns(text) for text, _ in line)
        line.append(piece)
        used += columns(shown)
        break_is_due = break_is_due or shown == LINE_BREAK
    if line:
        yield line


def _pieces(segments: Sequence[Segment], *, with_marks: bool) -> Iterator[Piece]:
    head, tail = KEPT_SEGMENTS
    num_left_out = len(segments) - head - tail
    for index, segment in enumerate(segments):
        if num_left_out > 0 and head <= index < len(segments) - tail:
            if index == head:
                yield from _remark(f" [... {num_left_out:,} stretches of text ...] ")
            continue
        is_marked = with_marks and segment.trained
        if is_marked:
            yield OPEN, False
        yield from _stretch(segment, with_marks=with_marks)
        if is_marked:
            yield CLOSE, False


def _stretch(segment: Segment, *, with_marks: bool) -> Iterator[Piece]:
    head, tail = KEPT_TRAINED if segment.trained else KEPT_UNTRAINED
    text, num_left_out = segment.text, len(segment.text) - head - tail
    if num_left_out <= LEAST_LEFT_OUT:
        yield from _characters(text, segment.trained, with_marks=with_marks)
        return
    yield from _characters(text[:head], segment.trained, with_marks=with_marks)
    yield from _remark(f" [... {num_left_out:,} characters ...] ")
    yield from _characters(text[-tail:], segment.trained, with_marks=with_marks)


def _characters(text: str, trained: bool, *, with_marks: bool) -> Iterator[Piece]:
    # What this page uses as a sign must not be taken for one where it stands in the data.
    signs = {LINE_BREAK, OPEN, CLOSE} if with_marks else {LINE_BREAK}
    for character in text:
        if character == "\n":
            yield LINE_BREAK, trained
        elif character in signs:
            yield f"\\u{ord(character):04x}", trained
        else:
            yield escaped(character), trained


def _remark(text: str) -> Iterator[Piece]:
    """Words of ours: never in the colour of what is trained."""
    return ((character, False) for character in text)


def _styled(line: list[Piece]) -> str:
    parts: list[str] = []
    is_on = False
    for shown, trained in line:
        if trained != is_on:
            parts.append(TRAINED_ON if trained else TRAINED_OFF)
            is_on = trained
        parts.append(shown)
    return "".join(parts) + (TRAINED_OFF if is_on else "")
