"""Packs: documents of known lengths, joined into rows of one capacity with as little unused space as possible.

The packs are planned on the histogram of the lengths, since documents of equal length are interchangeable: the plan
says how many documents of which length each pack contains, and every epoch reassigns documents to it. So the number
of packs, and with it the number of steps, is the same in every epoch. On the histogram, thousands of packs of one
pattern are one entry, so that a million documents take milliseconds.

Sources: Krell, Kosec, Perez, Fitzgibbon 2021, "Efficient Sequence Packing without Cross-contamination",
arXiv:2107.02027 (packing on the histogram); Johnson 1974, "Fast algorithms for bin packing" (best fit decreasing);
Csirik, Johnson, Kenyon, Orlin, Shor, Weber 2006, "On the Sum-of-Squares algorithm for bin packing", J. ACM 53(1).

Shapes: `N` documents, `P` packs, `C` the capacity in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL_LOSS = 0.001
"""Excess over the lower bound, as a share of packs, up to which best fit is accepted without trying sum of squares."""

SUM_OF_SQUARES_UNITS = 20_000
"""Limit of sum-of-squares steps, each of some microseconds: a larger histogram is scaled down to it."""

SUM_OF_SQUARES_WORK = 2**27
"""Limit of steps x `C`: a step looks at every amount of space, so a large capacity gets fewer steps."""

LEFT_FOR_BEST_FIT = 0.05
"""Share of the steps that sum of squares leaves to best fit, which closes the open packs with them. Measured on the
7,473 rows of GSM8K (55 to 507 words and punctuation marks, plus 35 for a template) at capacity 512: 0.9 % of the space
is unused, 1.3 % with nothing left to best fit, 1.0 % with a tenth; 3.6 % with best fit alone."""

GOLDEN_RATIO = 2654435769
"""2**32 / the golden ratio. Multiples of it modulo 2**32 distribute consecutive numbers evenly (Knuth, The Art of
Computer Programming, vol. 3, 6.4): more evenly than at random, and the same with every version of numpy."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packs:
    """The packs of one epoch; `packs[i]` are the rows of pack `i`, in order."""

    rows: np.ndarray
    """int64 `[N]`: the rows of the documents, pack after pack."""
    starts: np.ndarray
    """int64 `[P + 1]`: where in `rows` each pack starts; the last entry is `N`."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        number = range(len(self))[index]  # raises IndexError, which also ends a `for` loop over the packs
        return self.rows[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackPlan:
    """The pattern of the packs: the same in every epoch, whichever documents of a length are assigned to it."""

    capacity: int
    """`C`: the maximum number of tokens of a pack."""
    num_packs: int
    num_tokens: int
    """Tokens of all documents together."""
    lengths: np.ndarray
    """`[N]`: tokens of each document, in the smallest integer type that holds them: numpy sorts 16 bits by radix."""
    packs_by_length: np.ndarray
    """int64 `[N]`: the pack of each document, when documents are sorted by length."""

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def fill(self) -> float:
        """Used share of the packs' capacity; 1 where there are no packs."""
        return self.num_tokens / (self.num_packs * self.capacity) if self.num_packs else 1.0

    def most_crowded(self, num_packs: int) -> list[np.ndarray]:
        """The lengths of the documents of the packs with the most documents, at most `num_packs`; in every epoch."""
        by_pack = np.argsort(self.packs_by_length, kind="stable")
        starts = np.searchsorted(self.packs_by_length[by_pack], np.arange(self.num_packs + 1))
        lengths = np.sort(self.lengths)[by_pack]
        most = np.argsort(-np.diff(starts), kind="stable")[:num_packs]
        return [lengths[starts[number] : starts[number + 1]] for number in most]

    def deal(self, seed: int, epoch: int, shuffle: bool = True) -> Packs:
        """The packs of one epoch: a function of lengths, capacity, seed and epoch alone.

        Args:
            seed: of the run.
            epoch: from 0.
            shuffle: assign documents of equal length at random, and shuffle the packs and the documents in them.
                Otherwise nothing is random: packs are in the order of their smallest rows, rows ascend in each pack,
                and documents of equal length are assigned in the order of the data.
        """
        if not shuffle:
            in_order = np.arange(self.num_documents)
            packs = self._deal_in_order(in_order)
            return _packs_from(in_order, _ranks_by_first_row(packs, self.num_packs), packs)
        generator = np.random.default_rng([seed, epoch])
        packs = self._deal_in_order(generator.permutation(self.num_documents))
        order = generator.permutation(self.num_documents)
        return _packs_from(order, generator.permutation(self.num_packs), packs)

    def _deal_in_order(self, documents: np.ndarray) -> np.ndarray:
        """The pack of each document, int64 `[N]`; those of equal length are assigned in the order of `documents`."""
        by_length = documents[np.argsort(self.lengths[documents], kind="stable")]
        packs = np.empty(self.num_documents, dtype=np.int64)
        packs[by_length] = self.packs_by_length
        return packs


def plan_packs(lengths: np.ndarray, capacity: int, *, in_order: bool = False) -> PackPlan:
    """Plan packs for documents of these lengths: best fit decreasing, or sum of squares if that needs fewer packs.

    Best fit decreasing is almost optimal where there are short documents to fill the gaps. Where there are none
    (questions and answers of 80 to 500 tokens in packs of 512), it leaves several percent unused, since it joins the
    longest with the shortest and then has only medium lengths left; sum of squares does not.

    Args:
        lengths: integers `[N]`, tokens of each document.
        capacity: maximum number of tokens of a pack.
        in_order: fill one pack after another instead, in the order of the documents: each takes the next documents as
            long as they fit. The packs are to be dealt unshuffled.

    Raises:
        ValueError: if the capacity is below 1, or a length is below 1 or above the capacity.
    """
    lengths = _checked_lengths(lengths, capacity)
    num_tokens = int(lengths.sum())
    if in_order:
        packs = _next_fit(lengths, capacity)
        return PackPlan(
            capacity=capacity,
            num_packs=int(packs[-1]) + 1 if len(packs) else 0,
            num_tokens=num_tokens,
            lengths=lengths.astype(np.min_scalar_type(capacity)),
            packs_by_length=packs[np.argsort(lengths, kind="stable")],
        )
    counts = np.bincount(lengths, minlength=capacity + 1)
    packing = _Packing(capacity)
    _place_by_best_fit(packing, counts)
    if packing.num_packs > -(-num_tokens // capacity) * (1 + SMALL_LOSS):
        other = _Packing(capacity)
        _place_by_best_fit(other, _place_by_sum_of_squares(other, counts))
        packing = min(packing, other, key=lambda candidate: candidate.num_packs)
    return PackPlan(
        capacity=capacity,
        num_packs=packing.num_packs,
        num_tokens=num_tokens,
        lengths=lengths.astype(np.min_scalar_type(capacity)),
        packs_by_length=_packs_by_length(packing),
    )


def _next_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The pack of each document, int64 `[N]`, where each pack takes the next documents as long as they fit."""
    ends = np.cumsum(lengths)
    packs = np.empty(len(lengths), dtype=np.int64)
    begin = number = 0
    while begin < len(lengths):
        filled = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, filled + capacity, side="right"))
        packs[begin:end] = number
        begin, number = end, number + 1
    return packs


def _checked_lengths(lengths: np.ndarray, capacity: int) -> np.ndarray:
    if capacity < 1:
        raise ValueError(f"The capacity of a pack is {capacity} tokens; it must be at least 1.")
    lengths = np.asarray(lengths)
    if lengths.size == 0:  # numpy makes an empty list an array of floats
        return np.zeros(0, dtype=np.int64)
    wrong = np.flatnonzero((lengths < 1) | (lengths > capacity))
    if len(wrong):
        row = int(wrong[0])
        found = f"Row {row} has {lengths[row]} tokens; a pack takes documents of 1 to {capacity}."
        raise ValueError(found + (f" The same is true of {len(wrong)} rows in all." if len(wrong) > 1 else ""))
    return lengths.astype(np.int64, casting="same_kind")


class _Packing:
    """Packs under construction. Packs are numbered, and packs of one pattern are a range of numbers."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.num_packs = 0
        self.placed: list[tuple[int, int, int, int]] = []
        """(length, first pack, number of packs, documents of this length in each of these packs)"""
        self._ranges: dict[int, list[tuple[int, int]]] = {}
        """Free space -> ranges (first pack, number of packs) of packs with that much."""
        self._spaces = 0
        """Bit s is set where packs have free space s: the best fit is found by arithmetic on one integer."""

    def best_fit(self, length: int) -> int | None:
        """The least free space of an open pack that is at least `length`."""
        fitting = self._spaces >> length
        return length + (fitting & -fitting).bit_length() - 1 if fitting else None

    def open(self, num_packs: int) -> tuple[int, int]:
        """Add a range of empty packs."""
        self.num_packs += num_packs
        return self.num_packs - num_packs, num_packs

    def take(self, space: int) -> tuple[int, int]:
        """Remove and return a range of packs with this much free space; the caller must put it back."""
        ranges = self._ranges[space]
        taken = ranges.pop()
        if not ranges:
            self._spaces ^= 1 << space
        return taken

    def put(self, space: int, first: int, num_packs: int, length: int = 0, copies: int = 0) -> None:
        """Put `copies` documents of `length` into each pack of a range with free space `space`, and the range back."""
        if num_packs == 0:
            return
        if copies:
            self.placed.append((length, first, num_packs, copies))
        space -= copies * length
        if space:
            self._ranges.setdefault(space, []).append((first, num_packs))
            self._spaces |= 1 << space


def _place_by_best_fit(packing: _Packing, counts: np.ndarray) -> None:
    """Place `counts[length]` documents of each length, longest first, each where it leaves the least space.

    The outcome is that of placing one document after another: a pack that took a document and has space for more of
    this length is the best fit for the next. So a pack takes as many as fit, and packs of equal space are filled
    together.
    """
    for length in np.flatnonzero(counts)[::-1].tolist():
        count = int(counts[length])
        while count:
            space = packing.best_fit(length)
            if space is None:
                space = packing.capacity
                first, num_packs = packing.open(-(-count // (space // length)))
            else:
                first, num_packs = packing.take(space)
            copies = space // length
            full = min(num_packs, count // copies)
            last = count - full * copies if full < num_packs else 0  # too few to fill one more pack
            partial = int(last > 0)
            packing.put(space, first, full, length, copies)
            packing.put(space, first + full, partial, length, last)
            packing.put(space, first + full + partial, num_packs - full - partial)
            count -= full * copies + last


def _place_by_sum_of_squares(packing: _Packing, counts: np.ndarray) -> np.ndarray:
    """Place most documents so that the numbers of open packs with each free space stay small and even.

    A document goes where the sum over all spaces s of n(s)**2 becomes least, n(s) being the number of open packs with
    free space s. With documents in mixed order, the open packs then have all kinds of spaces, so that nearly every next
    document can close one. Moving a pack from space s to s - length adds 2 * (n(s - length) - n(s) + 1) to the sum; for
    a new pack and for a closed one this holds too, with n(C) = 1/2 and n(0) = -1/2. Counts are doubled, to be integers.

    A step places as many documents of a length as the histogram is scaled down by, each in a pack of its own.

    Returns:
        The counts that are left to place, `[C + 1]`: those left to best fit, and the remainders of the scaling.
    """
    capacity = packing.capacity
    units = max(1, min(SUM_OF_SQUARES_UNITS, SUM_OF_SQUARES_WORK // capacity))
    scale = max(1, -(-int(counts.sum()) // units))
    steps = _evenly_mixed(np.repeat(np.arange(capacity + 1), counts // scale))
    steps = steps[: len(steps) - int(len(steps) * LEFT_FOR_BEST_FIT)]
    num_open = np.zeros(capacity + 1, dtype=np.int64)
    num_open[0], num_open[capacity] = -1, 1
    nothing = np.iinfo(np.int64).min // 2
    offered = np.where(num_open > 0, num_open, nothing)  # as num_open, but excludes spaces that no pack has
    for length in steps.tolist():
        rest = int(np.argmax(offered[length:] - num_open[: capacity + 1 - length]))
        space = rest + length
        if space == capacity:
            taken = packing.open(scale)
        else:
            taken = packing.take(space)
            num_open[space] -= 2
            offered[space] = num_open[space] or nothing
        packing.put(space, *taken, length, 1)
        if rest:
            num_open[rest] += 2
            offered[rest] = num_open[rest]
    return counts - scale * np.bincount(steps, minlength=capacity + 1)


def _evenly_mixed(values: np.ndarray) -> np.ndarray:
    """The values, deterministically reordered so that every section has values from everywhere."""
    keys = np.arange(len(values), dtype=np.uint64) * np.uint64(GOLDEN_RATIO) % np.uint64(2**32)
    return values[np.argsort(keys, kind="stable")]


def _packs_by_length(packing: _Packing) -> np.ndarray:
    """The pack of each document, int64 `[N]`, documents sorted by length and then by the packs' new numbers.

    Packs are renumbered in an evenly mixed order, so that packs that take documents of a length are distributed over
    the whole range. The i-th of n documents of a length then goes to a pack near i / n of all, for every length:
    unshuffled, a pack's documents are close to each other in the data.
    """
    placed = np.array(packing.placed, dtype=np.int64).reshape(-1, 4)
    length, first, num_packs, copies = placed.T
    totals = num_packs * copies
    within = np.arange(totals.sum()) - np.repeat(np.cumsum(totals) - totals, totals)
    packs = np.repeat(first, totals) + within // np.repeat(copies, totals)
    numbers = np.empty(packing.num_packs, dtype=np.int64)
    numbers[_evenly_mixed(np.arange(packing.num_packs))] = np.arange(packing.num_packs)
    # One sort of combined keys instead of an argsort by two keys; equal keys are interchangeable.
    return np.sort(np.repeat(length, totals) * packing.num_packs + numbers[packs]) % max(packing.num_packs, 1)


def _ranks_by_first_row(packs: np.ndarray, num_packs: int) -> np.ndarray:
    """The rank of each pack, `[P]`, ordered by their smallest rows; `packs` `[N]` is the pack of each row."""
    first_rows = np.empty(num_packs, dtype=np.int64)
    first_rows[packs[::-1]] = np.arange(len(packs))[::-1]  # of several assignments to one pack, the last one stays
    ranks = np.empty(num_packs, dtype=np.int64)
    ranks[np.argsort(first_rows, kind="stable")] = np.arange(num_packs)
    return ranks


def _packs_from(documents: np.ndarray, ranks: np.ndarray, packs: np.ndarray) -> Packs:
    """Packs in the order of `ranks` `[P]`, each with its documents in the order of `documents` `[N]`."""
    of_documents = ranks[packs[documents]]
    rows = documents[np.argsort(of_documents, kind="stable")]
    sizes = np.bincount(of_documents, minlength=len(ranks))
    return Packs(rows=rows.astype(np.int64, copy=False), starts=np.concatenate([[0], np.cumsum(sizes)]))
