"""Rows that are too long, in pieces."""

import numpy as np
import pytest

from sft.common.data_records import IGNORED
from sft.prompting.messages import RowRefused
from sft.prompting.pieces import split_bounds, split_row, split_rows
from sft.prompting.tokenizing import TokenizedRow, joined_rows


def row_of(labels):
    labels = np.asarray(labels, dtype=np.int32)
    return TokenizedRow(
        input_ids=np.arange(len(labels), dtype=np.int32) + 100,
        labels=labels,
        full_length=len(labels),
        lost_end=False,
        has_trained_end=True,
    )


def test_split_bounds_cover_a_row_exactly_and_within_the_limit():
    generator = np.random.default_rng(0)
    for _ in range(5000):
        limit = int(generator.integers(2, 12))
        length, overlap = int(generator.integers(1, 60)), int(generator.integers(0, limit))
        bounds = list(split_bounds(length, limit, overlap))
        assert all(0 < end - begin <= limit for begin, end in bounds)
        new = [bounds[0], *((begin + overlap, end) for begin, end in bounds[1:])]
        assert [place for begin, end in new for place in range(begin, end)] == list(range(length))
        if limit > 2:
            assert length == 1 or all(end - begin > 1 for begin, end in bounds)


@pytest.mark.parametrize(("overlap", "untrained"), [(0, [0, 4, 8]), (1, [0]), (2, [0])])
def test_split_row_trains_each_token_once(overlap, untrained):
    row = row_of(np.arange(11) + 100)
    pieces, num_untrained = split_row(row, 4, overlap)
    predicted = sorted(token for piece in pieces for token in piece.labels[1:].tolist() if token != IGNORED)
    assert predicted == [100 + place for place in range(11) if place not in untrained]
    assert num_untrained == 0
    assert all((piece.labels[:overlap] == IGNORED).all() for piece in pieces[1:])


def test_split_rows_leaves_out_pieces_without_targets_and_refuses_a_row_of_only_such():
    short, prompt, hopeless = (
        row_of([100, 101]),
        row_of([IGNORED] * 6 + [106, 107]),
        row_of([IGNORED] * 4 + [104, -100]),
    )
    refused = RowRefused("no_answer", "nothing")
    found = split_rows(joined_rows([refused, short, prompt, hopeless]), 4, 0)
    assert (found.row.tolist(), found.number.tolist(), found.num_untrained) == ([0, 1], [0, 1], 1)
    assert found.tokens.input_ids.tolist() == [100, 101, 104, 105, 106, 107]
    assert {index: one.problem.reason for index, one in found.tokens.refusals.items()} == {
        0: "no_answer",
        3: "nothing_to_train",
    }
