"""A micro-batch's rows in smaller parts: what it would have been with a smaller micro-batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any


def split_rows(rows: Sequence[Mapping[str, Any]], micro_batch_size: int, parts: int) -> list[list[Mapping[str, Any]]]:
    """The rows in `parts` parts, as the samplers would have dealt them out with so much smaller a micro-batch size.

    A row (a pack, a slot of a stream) keeps to the part that its place in the micro-batch says; where there are more
    parts than places, the rows of each pack are shared out. A part that would hold nothing is left out.

    Args:
        rows: with the key `place`, their place in the micro-batch from 0, in ascending order.
        micro_batch_size: places that a full micro-batch has.
        parts: a multiple of `micro_batch_size`, or a divisor of it.
    """
    if parts <= micro_batch_size:
        places = micro_batch_size // parts
        return [list(group) for _, group in groupby(rows, key=lambda row: row["place"] // places)]
    shares = parts // micro_batch_size
    split: list[list[Mapping[str, Any]]] = []
    for _, group in groupby(rows, key=lambda row: row["place"]):
        of_place = list(group)
        size = -(-len(of_place) // shares)
        split += [of_place[start : start + size] for start in range(0, len(of_place), size)]
    return split


def next_parts(micro_batch_size: int, parts: int) -> int:
    """The next larger number of parts: twice as many, or the next that divides `micro_batch_size`."""
    if parts >= micro_batch_size:
        return 2 * parts
    return next(count for count in range(2 * parts, micro_batch_size + 1) if micro_batch_size % count == 0)
