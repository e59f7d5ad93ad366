"""Packs: every document once, within capacity, few packs, the same ones on every machine."""

from __future__ import annotations

import bisect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.batching.packing import plan_packs


def lognormal(generator, *, size, median, sigma, low, high):
    return np.clip(np.exp(generator.normal(math.log(median), sigma, size)).astype(np.int64), low, high)


def drawn_lengths(seed, *, size=700, capacity=256):
    """Lengths of some kind or other: the kinds that give best fit an easy and a hard time."""
    generator = np.random.default_rng(seed)
    kinds = [
        lambda: generator.integers(1, capacity + 1, size),
        lambda: generator.integers(capacity // 5, capacity // 5 * 2, size),
        lambda: lognormal(generator, size=size, median=capacity // 6, sigma=0.8, low=1, high=capacity),
        lambda: generator.choice([1, capacity // 3, capacity // 2, capacity // 2 + 1, capacity], size),
    ]
    return kinds[seed % len(kinds)]()


def best_fit_decreasing(lengths, capacity):
    """The number of packs when one document after another, longest first, goes where least space is left."""
    spaces = []  # of all packs, ascending
    for length in sorted((int(length) for length in lengths), reverse=True):
        place = bisect.bisect_left(spaces, length)
        space = spaces.pop(place) if place < len(spaces) else capacity
        bisect.insort(spaces, space - length)
    return len(spaces)


def as_lists(packs):
    return [pack.tolist() for pack in packs]


def lengths_in_packs(packs, lengths):
    return sorted(sorted(int(lengths[row]) for row in pack) for pack in packs)


# --- the plan


def test_plan_packs_on_lengths_that_fit_by_hand():
    plan = plan_packs(np.array([6, 4, 7, 3, 10, 5, 5]), 10)
    assert (plan.num_packs, plan.num_documents, plan.num_tokens, plan.fill) == (4, 7, 40, 1.0)
    assert as_lists(plan.deal(0, 0, shuffle=False)) == [[0, 1], [2, 3], [4], [5, 6]]


def test_plan_packs_puts_a_document_where_least_space_is_left():
    # 6 | 5: the 4 would fit with either and goes to the 6, the 2 and the 3 to the 5.
    plan = plan_packs(np.array([6, 5, 4, 3, 2]), 10)
    assert lengths_in_packs(plan.deal(0, 0), [6, 5, 4, 3, 2]) == [[2, 3, 5], [4, 6]]


def test_plan_packs_in_order_fills_one_pack_after_another():
    generator = np.random.default_rng(3)
    for _ in range(2000):
        capacity = int(generator.integers(1, 12))
        lengths = generator.integers(1, capacity + 1, generator.integers(0, 30))
        expected, space = [], 0
        for row, length in enumerate(lengths.tolist()):
            if length > space:
                expected.append([])
                space = capacity
            expected[-1].append(row)
            space -= length
        plan = plan_packs(lengths, capacity, in_order=True)
        assert [pack.tolist() for pack in plan.deal(0, 1, shuffle=False)] == expected
        assert plan.num_packs == len(expected)


def test_plan_packs_counts_what_is_left_empty():
    plan = plan_packs(np.array([6, 6, 6]), 10)  # nothing above half of the capacity has a partner
    assert plan.num_packs == 3
    assert plan.fill == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(12))
def test_plan_packs_needs_no_more_packs_than_best_fit_document_by_document(seed):
    lengths = drawn_lengths(seed)
    reference = best_fit_decreasing(lengths, 256)
    num_packs = plan_packs(lengths, 256).num_packs
    assert math.ceil(lengths.sum() / 256) <= num_packs <= reference


@pytest.mark.parametrize("size", [1, 2, 3, 5, 20, 50])
def test_plan_packs_needs_no_more_packs_than_best_fit_with_few_documents(size):
    for seed in range(40):
        lengths = drawn_lengths(seed, size=size, capacity=20)
        assert plan_packs(lengths, 20).num_packs <= best_fit_decreasing(lengths, 20)


def test_plan_packs_beats_best_fit_where_no_document_is_short():
    # Best fit joins longest and shortest; what is left are middling lengths, three to a pack with a gap of 60.
    lengths = np.random.default_rng(0).integers(100, 205, 20_000)
    assert best_fit_decreasing(lengths, 512) > lengths.sum() / 512 / 0.97
    assert plan_packs(lengths, 512).fill > 0.99


@pytest.mark.parametrize(
    ("draw", "capacity"),
    [
        (lambda g: lognormal(g, size=60_000, median=300, sigma=0.8, low=1, high=2048), 2048),
        (lambda g: lognormal(g, size=60_000, median=300, sigma=0.5, low=1, high=2048), 4096),
        (lambda g: g.integers(1, 513, 60_000), 512),
        (lambda g: g.integers(1, 513, 60_000), 2048),
        (lambda g: lognormal(g, size=7_473, median=160, sigma=0.38, low=55, high=512), 512),
        (lambda g: lognormal(g, size=7_473, median=190, sigma=0.35, low=90, high=542), 1024),
        (lambda g: lognormal(g, size=60_000, median=220, sigma=0.35, low=100, high=512), 512),
        (lambda g: g.integers(1, 20_001, 60_000), 65_536),
    ],
)
def test_plan_packs_fills_the_packs(draw, capacity):
    lengths = draw(np.random.default_rng(0))
    plan = plan_packs(lengths, capacity)
    assert plan.fill >= 0.98
    assert plan.fill == pytest.approx(lengths.sum() / (plan.num_packs * capacity))


def test_plan_packs_is_a_function_of_the_histogram():
    lengths = drawn_lengths(1)
    mixed = np.random.default_rng(5).permutation(lengths)
    plan, other = plan_packs(lengths, 256), plan_packs(mixed, 256)
    assert np.array_equal(plan.packs_by_length, other.packs_by_length)
    assert lengths_in_packs(plan.deal(0, 0), lengths) == lengths_in_packs(other.deal(0, 0), mixed)


def test_plan_packs_keeps_its_lengths_when_the_callers_array_changes():
    lengths = np.array([3, 7, 5])
    plan = plan_packs(lengths, 10)
    lengths[:] = 1
    assert plan.lengths.tolist() == [3, 7, 5]


@pytest.mark.parametrize("kind", [list, np.int32, np.uint16, np.uint64])
def test_plan_packs_takes_integers_of_every_kind(kind):
    lengths = [3, 7, 5, 5]
    given = lengths if kind is list else np.array(lengths, dtype=kind)
    assert as_lists(plan_packs(given, 10).deal(0, 0, shuffle=False)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize(("lengths", "row"), [([3, 11, 2], 1), ([3, 2, 0], 2), ([-1], 0)])
def test_plan_packs_refuses_a_length_that_no_pack_takes(lengths, row):
    with pytest.raises(ValueError, match=f"Row {row} has {lengths[row]} tokens; a pack takes documents of 1 to 10"):
        plan_packs(np.array(lengths), 10)


def test_plan_packs_refuses_a_capacity_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        plan_packs(np.array([], dtype=np.int64), 0)


def test_plan_packs_refuses_fractions():
    with pytest.raises(TypeError):
        plan_packs(np.array([1.5, 2.0]), 10)


# --- edge cases, through to the packs


@pytest.mark.parametrize("lengths", [np.array([]), np.array([], dtype=np.int64), []])
@pytest.mark.parametrize("shuffle", [True, False])
def test_deal_of_no_documents_gives_no_packs(lengths, shuffle):
    plan = plan_packs(lengths, 8)
    packs = plan.deal(0, 0, shuffle=shuffle)
    assert (plan.num_packs, plan.num_documents, plan.num_tokens, plan.fill) == (0, 0, 0, 1.0)
    assert len(packs) == 0
    assert as_lists(packs) == []
    assert packs.starts.tolist() == [0]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("lengths", "capacity", "num_packs"),
    [([3], 8, 1), ([8], 8, 1), ([8] * 5, 8, 5), ([1] * 5, 1, 5), ([1] * 20, 8, 3), ([4] * 7, 9, 4), ([5] * 7, 9, 7)],
)
def test_deal_of_equal_lengths(lengths, capacity, num_packs, shuffle):
    plan = plan_packs(np.array(lengths), capacity)
    packs = plan.deal(3, 1, shuffle=shuffle)
    assert len(packs) == plan.num_packs == num_packs
    assert sorted(packs.rows.tolist()) == list(range(len(lengths)))
    assert max(len(pack) for pack in packs) <= capacity // lengths[0]


# --- dealing out


@given(
    documents=st.integers(1, 40).flatmap(
        lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=80))
    ),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_any_packs_hold_every_document_once_within_capacity(documents, seed, epoch, shuffle):
    capacity, lengths = documents
    plan = plan_packs(np.array(lengths, dtype=np.int64), capacity)
    packs = as_lists(plan.deal(seed, epoch, shuffle=shuffle))
    assert len(packs) == plan.num_packs
    assert math.ceil(sum(lengths) / capacity) <= plan.num_packs <= best_fit_decreasing(lengths, capacity)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(1 <= sum(lengths[row] for row in pack) <= capacity for pack in packs)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_deal_gives_every_document_once_and_overfills_no_pack(seed, shuffle):
    lengths = drawn_lengths(seed)
    plan = plan_packs(lengths, 256)
    for epoch in range(3):
        packs = plan.deal(seed, epoch, shuffle=shuffle)
        assert np.array_equal(np.sort(packs.rows), np.arange(len(lengths)))
        assert (packs.starts[0], packs.starts[-1]) == (0, len(lengths))
        assert all(1 <= lengths[pack].sum() <= 256 for pack in packs)


@pytest.mark.parametrize("capacity", [409, 512, 1024])
def test_deal_of_a_large_histogram_that_is_scaled_down(capacity):
    lengths = np.random.default_rng(1).integers(100, 205, 90_001)  # enough documents that a step places five at once
    packs = plan_packs(lengths, capacity).deal(0, 0)
    assert np.array_equal(np.sort(packs.rows), np.arange(len(lengths)))
    assert np.add.reduceat(lengths[packs.rows], packs.starts[:-1]).max() <= capacity
    assert np.diff(packs.starts).min() >= 1


@pytest.mark.parametrize("seed", range(4))
def test_deal_keeps_the_pattern_of_the_packs_in_every_epoch(seed):
    lengths = drawn_lengths(seed)
    plan = plan_packs(lengths, 256)
    pattern = lengths_in_packs(plan.deal(seed, 0), lengths)
    for epoch, shuffle in [(1, True), (2, True), (0, False)]:
        packs = plan.deal(seed, epoch, shuffle=shuffle)
        assert len(packs) == plan.num_packs
        assert lengths_in_packs(packs, lengths) == pattern


def test_deal_is_the_same_for_the_same_seed_and_epoch():
    lengths = drawn_lengths(2)
    first, second = plan_packs(lengths, 256).deal(7, 3), plan_packs(lengths, 256).deal(7, 3)
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.starts, second.starts)


def test_deal_gives_literal_packs():
    """Packs that must come out on every machine: a run that resumes elsewhere relies on it."""
    plan = plan_packs(np.array([6, 4, 7, 3, 10, 5, 5, 4, 6]), 10)
    assert as_lists(plan.deal(0, 0)) == [[4], [2, 3], [6, 5], [0, 1], [8, 7]]
    assert as_lists(plan.deal(0, 1)) == [[8, 1], [2, 3], [0, 7], [4], [6, 5]]


@pytest.mark.parametrize(("seed", "epoch"), [(7, 1), (8, 0)])
def test_deal_differs_with_seed_and_epoch(seed, epoch):
    plan = plan_packs(drawn_lengths(0), 256)
    together = {tuple(sorted(pack)) for pack in as_lists(plan.deal(7, 0)) if len(pack) > 1}
    others = {tuple(sorted(pack)) for pack in as_lists(plan.deal(seed, epoch)) if len(pack) > 1}
    assert len(together & others) < len(together) / 4


def test_deal_joins_any_two_documents_of_fitting_lengths_over_the_epochs():
    plan = plan_packs(np.array([7, 7, 7, 3, 3, 3]), 10)
    partners = {tuple(sorted(pack)) for epoch in range(60) for pack in as_lists(plan.deal(0, epoch))}
    assert partners == {(long, short) for long in range(3) for short in range(3, 6)}


def test_deal_puts_documents_of_a_pack_and_packs_in_every_order():
    plan = plan_packs(np.array([5, 3, 2, 10]), 10)
    orders = {tuple(tuple(pack) for pack in as_lists(plan.deal(0, epoch))) for epoch in range(200)}
    assert len(orders) == 2 * 6  # position of the full document, times the orders of the other three


def test_deal_unshuffled_follows_the_data():
    lengths = drawn_lengths(2, size=5000)
    plan = plan_packs(lengths, 256)
    packs = plan.deal(0, 0, shuffle=False)
    assert all((np.diff(pack) > 0).all() for pack in packs)
    assert (np.diff([pack[0] for pack in packs]) > 0).all()
    # The rows of a random pack would span more than half of the data.
    assert np.mean([pack[-1] - pack[0] for pack in packs]) < 5000 / 4


def test_deal_unshuffled_gives_equal_documents_in_ascending_order():
    packs = plan_packs(np.array([2] * 9), 6).deal(0, 0, shuffle=False)
    assert as_lists(packs) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_deal_unshuffled_ignores_seed_and_epoch():
    plan = plan_packs(drawn_lengths(3), 256)
    assert as_lists(plan.deal(0, 0, shuffle=False)) == as_lists(plan.deal(1, 5, shuffle=False))


# --- the packs


def test_packs_are_indexed_like_a_sequence():
    packs = plan_packs(np.array([6, 4, 7, 3]), 10).deal(0, 0, shuffle=False)
    assert len(packs) == 2
    assert (packs.rows.dtype, packs.starts.dtype) == (np.int64, np.int64)
    assert packs.rows.tolist() == [0, 1, 2, 3]
    assert packs.starts.tolist() == [0, 2, 4]
    assert packs[0].tolist() == [0, 1]
    assert packs[np.int64(1)].tolist() == packs[-1].tolist() == [2, 3]
    with pytest.raises(IndexError):
        packs[2]
