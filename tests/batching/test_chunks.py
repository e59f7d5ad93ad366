"""Splitting a micro-batch into smaller chunks."""

from __future__ import annotations

import pytest

from sft.batching.chunks import next_num_chunks, split_rows


@pytest.mark.parametrize(
    ("indices", "size", "num_chunks", "expected"),
    [
        ([0, 1, 2, 3], 4, 2, [[0, 1], [2, 3]]),
        ([0, 1, 2], 4, 2, [[0, 1], [2]]),  # the last rows of an epoch
        ([0, 3], 4, 2, [[0], [3]]),  # two slots of a stream are empty
        ([3], 4, 4, [[3]]),
        ([0, 0, 0, 1, 1], 2, 2, [[0, 0, 0], [1, 1]]),  # packs
        ([0, 0, 0, 1, 1], 2, 4, [[0, 0], [0], [1], [1]]),
    ],
)
def test_split_rows_follows_the_index_in_the_micro_batch(indices, size, num_chunks, expected):
    split = split_rows([{"batch_index": index} for index in indices], size, num_chunks)
    assert [[row["batch_index"] for row in chunk] for chunk in split] == expected


def test_next_num_chunks_divides_the_size():
    assert [next_num_chunks(8, count) for count in (1, 2, 4, 8, 16)] == [2, 4, 8, 16, 32]
    assert [next_num_chunks(6, count) for count in (1, 2, 3, 6)] == [2, 6, 6, 12]
    assert next_num_chunks(3, 1) == 3
