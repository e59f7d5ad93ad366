"""A micro-batch's rows in smaller chunks: the micro-batches that a smaller micro-batch size would have made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sft.batching.layout import Row


def split_rows(rows: Sequence[Row], micro_batch_size: int, num_chunks: int) -> list[list[Row]]:
    """Split rows into `num_chunks` chunks, as the samplers would have with a correspondingly smaller micro-batch size.

    The chunk of a row (or of a pack, or of a slot of a stream) follows from its index in the micro-batch; where there
    are more chunks than indices, the rows of each pack are divided. Empty chunks are omitted.

    Args:
        rows: rows with the key `batch_index`, their index in the micro-batch from 0, in ascending order of it.
        micro_batch_size: number of indices of a full micro-batch.
        num_chunks: a multiple of `micro_batch_size`, or a divisor of it.
    """
    if num_chunks <= micro_batch_size:
        indices = micro_batch_size // num_chunks
        return [list(group) for _, group in groupby(rows, key=lambda row: row["batch_index"] // indices)]
    shares = num_chunks // micro_batch_size
    split: list[list[Row]] = []
    for _, group in groupby(rows, key=lambda row: row["batch_index"]):
        of_pack = list(group)
        size = -(-len(of_pack) // shares)
        split += [of_pack[start : start + size] for start in range(0, len(of_pack), size)]
    return split


def next_num_chunks(micro_batch_size: int, num_chunks: int) -> int:
    """The next larger number of chunks: twice as many, or the next divisor of `micro_batch_size`."""
    if num_chunks >= micro_batch_size:
        return 2 * num_chunks
    return next(count for count in range(2 * num_chunks, micro_batch_size + 1) if micro_batch_size % count == 0)
