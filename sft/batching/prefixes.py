"""Leading tokens that rows of a micro-batch share (a system prompt, say): computed once, attended to by all of them.

In a causal model the first tokens of a row do not depend on later ones, so rows with equal first tokens have equal
hidden states there. Only attention needs them in front of each row. (This is what prefix caching does for inference;
here the gradients of all rows flow back into the one copy.)

One row of each group is the owner: its leading tokens are computed, the others borrow them.

Shapes: `B` rows, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft.batching.targets import target_positions

MIN_SHARED = 8
"""Least number of equal leading tokens: fewer are not worth the copies that attention makes."""
MIN_SAVED = 0.03
"""Least share of a micro-batch's tokens to save, for the same reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefixes:
    """How the packed row, which has every prefix once, is split into pieces, and how attention's row is assembled."""

    lengths: list[int]
    """Tokens of each piece of the packed row."""
    order: list[int]
    """The pieces in the order of attention's row, in which every document is complete."""
    own: list[int]
    """For each piece of the packed row, in order, its index in `order` that is not a borrowed copy."""


def find_owners(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """For each row, the row that owns its leading tokens, and how many it borrows: `[B]` each.

    A row that borrows none is its own owner, with 0. No borrowed position predicts a trained token, and every row
    keeps at least one token of its own.
    """
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(np.asarray(row["input_ids"][:MIN_SHARED], dtype=np.int64).tobytes(), []).append(index)
    owners, borrowed = list(range(len(rows))), [0] * len(rows)
    for members in groups.values():
        if len(members) < 2:
            continue
        limit = min(_untrained(rows[index]) for index in members)
        first = rows[members[0]]["input_ids"][:limit]
        is_equal = np.ones(limit, dtype=bool)
        for index in members[1:]:
            is_equal &= rows[index]["input_ids"][:limit] == first
        shared = limit if is_equal.all() else int(np.argmin(is_equal))
        if shared >= MIN_SHARED:
            for index in members[1:]:
                owners[index], borrowed[index] = members[0], shared
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    if sum(borrowed) < MIN_SAVED * num_tokens:
        return list(range(len(rows))), [0] * len(rows)
    return owners, borrowed


def cut_into_pieces(lengths: Sequence[int], owners: Sequence[int], borrowed: Sequence[int]) -> SharedPrefixes:
    """The pieces of rows of `lengths` `[B]`, with owners and borrowed tokens as `find_owners` returns them."""
    lent = {owner: shared for owner, shared in zip(owners, borrowed, strict=True) if shared}
    pieces: list[int] = []
    order: list[int] = []
    own: list[int] = []
    prefix_piece: dict[int, int] = {}

    def add(length: int) -> None:
        own.append(len(order))
        order.append(len(pieces))
        pieces.append(length)

    for index, (length, shared) in enumerate(zip(lengths, borrowed, strict=True)):
        if index in lent:
            prefix_piece[index] = len(pieces)
            add(lent[index])
            add(length - lent[index])
        elif shared:
            order.append(prefix_piece[owners[index]])
            add(length - shared)
        else:
            add(length)
    return SharedPrefixes(lengths=pieces, order=order, own=own)


def _untrained(row: Mapping[str, Any]) -> int:
    """Number of leading positions that predict no trained token; at most all but the last token."""
    targets = target_positions(row)
    return int(targets[0]) if len(targets) else len(row["labels"]) - 1
