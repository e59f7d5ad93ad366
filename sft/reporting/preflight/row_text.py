"""A row's text in the terminal: supervised text stands out, and every character is visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.common.shown_rows import Segment
from sft.common.text import columns, escaped

TRAINED_ON, TRAINED_OFF = "\x1b[30;42m", "\x1b[0m"
"""Black on green, and back."""
OPEN, CLOSE, LINE_BREAK = "⟦", "⟧", "⏎"

KEPT_TRAINED, KEPT_UNTRAINED = (300, 200), (240, 160)
"""Characters shown at the start and the end (with the end token) of a long segment."""
MIN_OMITTED = 40
"""Characters; a remark that fewer are omitted would be as long as they are."""
KEPT_SEGMENTS = (4, 4)
LONGEST_WORD = 20
"""Columns; words up to this length are not broken."""

Piece = tuple[str, bool]
"""What is shown for one character, and whether it is supervised."""


def row_lines(segments: Sequence[Segment], *, width: int, colour: bool) -> list[str]:
    """The row in lines of at most `width` columns.

    A line break in the text is shown as `⏎` and breaks the line. Supervised text is green or, without colour, between
    `⟦` and `⟧`. The middle of long segments, and of rows with many segments, is replaced by a remark.
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
            # After the last space if it is near, else where the line is full.
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
    num_omitted = len(segments) - head - tail
    for index, segment in enumerate(segments):
        if num_omitted > 0 and head <= index < len(segments) - tail:
            if index == head:
                yield from _remark(f" [... {num_omitted:,} segments ...] ")
            continue
        is_marked = with_marks and segment.trained
        if is_marked:
            yield OPEN, False
        if segment.weight is not None and segment.weight != (1 if segment.trained else 0):
            yield from _remark(f"[weight {segment.weight:g}] ")
        yield from _segment_pieces(segment, with_marks=with_marks)
        if is_marked:
            yield CLOSE, False


def _segment_pieces(segment: Segment, *, with_marks: bool) -> Iterator[Piece]:
    head, tail = KEPT_TRAINED if segment.trained else KEPT_UNTRAINED
    text, num_omitted = segment.text, len(segment.text) - head - tail
    if num_omitted <= MIN_OMITTED:
        yield from _characters(text, segment.trained, with_marks=with_marks)
        return
    yield from _characters(text[:head], segment.trained, with_marks=with_marks)
    yield from _remark(f" [... {num_omitted:,} characters ...] ")
    yield from _characters(text[-tail:], segment.trained, with_marks=with_marks)


def _characters(text: str, trained: bool, *, with_marks: bool) -> Iterator[Piece]:
    # Our own signs are escaped if the data contains them.
    signs = {LINE_BREAK, OPEN, CLOSE} if with_marks else {LINE_BREAK}
    for character in text:
        if character == "\n":
            yield LINE_BREAK, trained
        elif character in signs:
            yield f"\\u{ord(character):04x}", trained
        else:
            yield escaped(character), trained


def _remark(text: str) -> Iterator[Piece]:
    """Our own words: never in the colour of supervised text."""
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
