"""Leading tokens that rows of a micro-batch share (a system prompt, say): laid out once, seen by all of them.

In a causal model the first tokens of a row do not depend on what follows, so rows that begin alike have the same
hidden states there. Only attention has to find them in front of each row. (As prefix caching does for inference; here
gradients flow back into the one copy from every row.)

Shapes: `B` rows, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FEWEST_SHARED = 8
"""Leading tokens that must be alike: fewer are not worth the copies that attention makes."""
LEAST_SAVED = 0.03
"""Share of a micro-batch's tokens that must be saved, likewise."""
IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedPrefixes:
    """How the row with every prefix once is cut into pieces, and how the row that attention sees is made of them."""

    lengths: list[int]
    """Tokens of each piece of the laid out row."""
    order: list[int]
    """The pieces in the order of attention's row, in which every document is whole."""
    own: list[int]
    """Places in `order` at which the laid out row's pieces stand for themselves, in their order."""


def find_owners(rows: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Which row lends its leading tokens to which, and how many: `[B]` each.

    A row that borrows none is its own owner, with 0. No borrowed position predicts a supervised token, and every row
    keeps a token of its own.
    """
    groups: dict[bytes, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(np.asarray(row["input_ids"][:FEWEST_SHARED], dtype=np.int64).tobytes(), []).append(index)
    owners, borrowed = list(range(len(rows))), [0] * len(rows)
    for members in groups.values():
        if len(members) < 2:
            continue
        limit = min(_unsupervised(rows[index]["labels"]) for index in members)
        first = rows[members[0]]["input_ids"][:limit]
        alike = np.ones(limit, dtype=bool)
        for index in members[1:]:
            alike &= rows[index]["input_ids"][:limit] == first
        shared = limit if alike.all() else int(np.argmin(alike))
        if shared >= FEWEST_SHARED:
            for index in members[1:]:
                owners[index], borrowed[index] = members[0], shared
    num_tokens = sum(len(row["input_ids"]) for row in rows)
    if sum(borrowed) < LEAST_SAVED * num_tokens:
        return list(range(len(rows))), [0] * len(rows)
    return owners, borrowed


def cut_into_pieces(lengths: Sequence[int], owners: Sequence[int], borrowed: Sequence[int]) -> SharedPrefixes:
    """The pieces of rows of `lengths` `[B]` whose leading tokens are lent as `find_owners` says."""
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


def _unsupervised(labels: np.ndarray) -> int:
    """How many of a row's leading positions predict nothing that is supervised; at least one token is left out."""
    targets = np.flatnonzero(np.asarray(labels)[1:] != IGNORED)
    return int(targets[0]) if len(targets) else len(labels) - 1
