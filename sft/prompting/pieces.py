"""Rows that are too long, split into pieces of at most `max_seq_length` tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sft.common.data_records import IGNORED
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import TokenizedRow, TokenizedRows, joined_rows

NO_LIMIT = 2**31 - 1
"""The maximum number of tokens with which rows are tokenized that are split afterwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """The pieces of several rows, `P` of them; a row that fits is one piece."""

    tokens: TokenizedRows
    """Its rows are the pieces."""
    row: np.ndarray
    """int64 `[P]`: index of the row among those that are not refused."""
    number: np.ndarray
    """int32 `[P]`: number of the piece in its row, from 1; 0 for a row that fits."""
    num_untrained: int = 0
    """Pieces without a supervised token, which are left out."""


def split_bounds(length: int, limit: int, overlap: int = 0) -> Iterator[tuple[int, int]]:
    """The tokens `[begin, end)` of each piece of a row of `length` tokens.

    Without overlap, the first token of a piece is not predicted. A last piece of one token would teach nothing, and
    that token is the end token: it gets the token before it, too.
    """
    begin = 0
    while begin + limit < length:
        end = begin + limit
        if overlap == 0 and end == length - 1 and limit > 2:
            end -= 1
        yield begin, end
        begin = end - overlap
    yield begin, length


def split_row(row: TokenizedRow, limit: int, overlap: int) -> tuple[list[TokenizedRow], int]:
    """The pieces of a row that have supervised tokens, and how many have none.

    Args:
        row: A row, not truncated.
        limit: Maximum number of tokens of a piece.
        overlap: Number of tokens at the start of each further piece that repeat the end of the one before, with their
            labels ignored.

    Raises:
        RowRefused: If no piece has a supervised token.
    """
    bounds = list(split_bounds(len(row.input_ids), limit, overlap))
    pieces = []
    for number, (begin, end) in enumerate(bounds):
        labels = row.labels[begin:end].copy()
        if number:
            labels[:overlap] = IGNORED
        weights = None if row.weights is None else row.weights[begin:end].copy()
        if weights is not None:
            # Nothing predicts the first token; the repeated ones count in the piece before.
            weights[: overlap if number and overlap else 1] = 0
        piece = replace(row, input_ids=row.input_ids[begin:end].copy(), labels=labels, weights=weights)
        if piece.num_supervised:
            pieces.append(piece)
    if not pieces:
        raise RowRefused("nothing_to_train", f"none of its {len(bounds)} pieces has a supervised token")
    return pieces, len(bounds) - len(pieces)


def split_rows(tokens: TokenizedRows, limit: int, overlap: int) -> Pieces:
    """All rows in pieces. Rows of which no piece has a supervised token become refusals."""
    if not (tokens.lengths > limit).any():
        num_rows = len(tokens.lengths)
        return Pieces(tokens=tokens, row=np.arange(num_rows), number=np.zeros(num_rows, dtype=np.int32))
    pieces: list[TokenizedRow] = []
    row_of_piece: list[int] = []
    number_of_piece: list[int] = []
    refusals: dict[int, RowRefused] = {}
    num_rows = num_untrained = 0
    for index, outcome in enumerate(tokens.split()):
        try:
            if isinstance(outcome, RowRefused):
                raise outcome
            is_split = len(outcome.input_ids) > limit
            own, without = split_row(outcome, limit, overlap) if is_split else ([outcome], 0)
        except RowRefused as refusal:
            refusals[index] = refusal
            continue
        pieces += own
        row_of_piece += [num_rows] * len(own)
        number_of_piece += range(1, len(own) + 1) if is_split else [0]
        num_rows += 1
        num_untrained += without
    return Pieces(
        tokens=joined_rows(pieces).with_refusals(refusals),
        row=np.asarray(row_of_piece, dtype=np.int64),
        number=np.asarray(number_of_piece, dtype=np.int32),
        num_untrained=num_untrained,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLong:
    """What becomes of rows that are too long, where they are neither truncated nor dropped."""

    shortens: bool = False
    """Conversations keep their latest turns."""
    piece_length: int | None = None
    """Rows are split into pieces of at most this many tokens."""
    overlap: int = 0
    """Tokens that a piece repeats."""

    def splits(self, length: int) -> bool:
        """Whether a row of that many tokens is split."""
        return self.piece_length is not None and length > self.piece_length

    def split(self, tokens: TokenizedRows) -> Pieces:
        """All rows in pieces."""
        return split_rows(tokens, self.piece_length or NO_LIMIT, self.overlap)

    def pieces(self, row: TokenizedRow) -> list[TokenizedRow]:
        """One row in pieces.

        Raises:
            RowRefused: If no piece has a supervised token.
        """
        if not self.splits(len(row.input_ids)):
            return [row]
        return split_row(row, self.piece_length or NO_LIMIT, self.overlap)[0]
