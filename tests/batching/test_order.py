"""The order of rows and packs: the same for any split into processes and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.batching.order import PackedBatchSampler, RankBatchSampler, filler
from sft.batching.packing import plan_packs


def rows_of_step(num_rows, micro, accumulation, world, *, step, **options):
    """The rows of an optimizer step, all ranks and micro-batches together, without fillers."""
    rows = []
    for rank in range(world):
        sampler = RankBatchSampler(num_rows, micro, rank=rank, world_size=world, seed=7, **options)
        for batch in list(sampler)[step * accumulation : (step + 1) * accumulation]:
            rows += batch
    return sorted(row for row in rows if row >= 0)


@pytest.mark.parametrize(("micro", "accumulation", "world"), [(8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 2, 4), (2, 4, 1)])
def test_rows_of_a_step_do_not_depend_on_the_split(micro, accumulation, world):
    for step in range(4):  # the last step is short: 27 rows
        expected = rows_of_step(27, 8, 1, 1, step=step)
        assert rows_of_step(27, micro, accumulation, world, step=step) == expected


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("strategy", ["random", "sequential", "by_length", "group_by_length"])
def test_every_row_comes_once_and_ranks_have_equally_many_batches(world, strategy):
    lengths = list(np.random.default_rng(0).integers(1, 100, 101))
    samplers = [
        RankBatchSampler(101, 4, rank=rank, world_size=world, strategy=strategy, lengths=lengths)
        for rank in range(world)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(samplers[0])}
    rows = [row for own in batches for batch in own for row in batch if row >= 0]
    assert sorted(rows) == list(range(101))
    assert all(batch for own in batches for batch in own)


STRATEGIES = st.sampled_from(["random", "sequential", "by_length", "group_by_length"])


def samplers_of(num_rows, micro, world, *, seed, epoch, strategy):
    """The samplers of all ranks, at an epoch; lengths are a function of the row."""
    lengths = [1 + 37 * row % 101 for row in range(num_rows)]
    made = [
        RankBatchSampler(num_rows, micro, rank=rank, world_size=world, seed=seed, strategy=strategy, lengths=lengths)
        for rank in range(world)
    ]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


@given(
    num_rows=st.integers(1, 200),
    micro=st.integers(1, 9),
    world=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
    strategy=STRATEGIES,
)
@settings(max_examples=100, deadline=None)
def test_ranks_are_disjoint_and_together_a_permutation(num_rows, micro, world, seed, epoch, strategy):
    samplers = samplers_of(num_rows, micro, world, seed=seed, epoch=epoch, strategy=strategy)
    assert sorted(samplers[0].order().tolist()) == list(range(num_rows))
    batches = [list(sampler) for sampler in samplers]
    assert {len(own) for own in batches} == {len(samplers[0])}
    assert all(1 <= len(batch) <= micro for own in batches for batch in own)
    rows = [row for own in batches for batch in own for row in batch]
    assert sorted(row for row in rows if row >= 0) == list(range(num_rows))
    assert all(0 <= filler(row) < num_rows for row in rows if row < 0)


@given(
    num_rows=st.integers(1, 200),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    world=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 5),
    strategy=st.sampled_from(["random", "sequential", "by_length"]),
)
@settings(max_examples=100, deadline=None)
def test_rows_of_a_step_equal_those_of_one_process(num_rows, micro, accumulation, world, seed, epoch, strategy):
    def steps(micro, accumulation, world):
        samplers = samplers_of(num_rows, micro, world, seed=seed, epoch=epoch, strategy=strategy)
        batches = [list(sampler) for sampler in samplers]
        return [
            sorted(row for own in batches for batch in own[start : start + accumulation] for row in batch if row >= 0)
            for start in range(0, len(batches[0]), accumulation)
        ]

    assert steps(micro, accumulation, world) == steps(micro * accumulation * world, 1, 1)


def test_order_depends_on_epoch_and_seed_alone():
    sampler = RankBatchSampler(50, 5, seed=3)
    first = sampler.order().tolist()
    assert sampler.order().tolist() == first
    sampler.set_epoch(1)
    assert sampler.order().tolist() != first
    assert RankBatchSampler(50, 5, seed=4).order().tolist() != first
    sampler.set_epoch(0)
    assert sampler.order().tolist() == first


def test_group_by_length_puts_similar_lengths_together():
    lengths = np.random.default_rng(1).integers(1, 1000, 4000)
    grouped = RankBatchSampler(4000, 8, strategy="group_by_length", lengths=lengths)
    plain = RankBatchSampler(4000, 8)

    def padding(sampler):
        return sum(max(lengths[batch]) * len(batch) - lengths[batch].sum() for batch in sampler)

    assert padding(grouped) < padding(plain) / 10


def test_drop_last_omits_the_short_batch():
    assert [len(batch) for batch in RankBatchSampler(10, 4, drop_last=True)] == [4, 4]
    assert [len(batch) for batch in RankBatchSampler(10, 4)] == [4, 4, 2]


def test_a_rank_without_rows_gets_a_filler():
    batches = list(RankBatchSampler(5, 2, rank=1, world_size=2, strategy="sequential"))
    assert batches == [[1, 3], [filler(4)]]
    assert filler(4) == -5


def test_the_rows_of_a_step_are_a_function_of_seed_epoch_and_global_batch_alone():
    generator = np.random.default_rng(0)
    for case in range(3000):
        strategy = ("random", "sequential", "by_length")[case % 3]
        micro, accumulation, world = generator.integers(1, 4, 3).tolist()
        num_rows, seed, epoch = generator.integers(1, [40, 9, 4]).tolist()
        lengths = generator.integers(1, 9, num_rows)
        parts = []
        for rank in range(world):
            own = RankBatchSampler(
                num_rows, micro, rank=rank, world_size=world, seed=seed, strategy=strategy, lengths=lengths
            )
            own.set_epoch(epoch)
            parts.append([row for batch in own for row in batch])
        whole = RankBatchSampler(num_rows, micro * accumulation * world, seed=seed, strategy=strategy, lengths=lengths)
        whole.set_epoch(epoch)
        for step, batch in enumerate(whole):
            of_step = slice(step * micro * accumulation, (step + 1) * micro * accumulation)
            assert sorted(row for own in parts for row in own[of_step] if row >= 0) == sorted(batch)


def test_by_length_takes_short_rows_first_and_shuffles_those_of_equal_length_in_each_epoch():
    lengths = np.random.default_rng(1).integers(1, 20, 300)
    sampler = RankBatchSampler(300, 5, seed=2, strategy="by_length", lengths=lengths)
    first = sampler.order()
    assert lengths[first].tolist() == sorted(lengths)
    sampler.set_epoch(1)
    second = sampler.order()
    assert lengths[second].tolist() == sorted(lengths)
    assert first.tolist() != second.tolist()


def packed_rows(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return [[row for row, _ in batch] for batch in sampler]


LENGTHS = np.random.default_rng(0).integers(1, 60, 500)


def test_packed_batches_hold_every_row_once_within_capacity():
    sampler = PackedBatchSampler(plan_packs(LENGTHS, 64), 3, seed=5)
    for epoch in (0, 1):
        batches = packed_rows(sampler, epoch)
        assert len(batches) == len(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(500))
        assert all(LENGTHS[batch].sum() <= 3 * 64 for batch in batches)
    assert packed_rows(sampler, 0) != packed_rows(sampler, 1)


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_packs_of_a_step_do_not_depend_on_how_it_is_split(strategy):
    packs = plan_packs(LENGTHS, 64)
    one = packed_rows(PackedBatchSampler(packs, 8, seed=5, strategy=strategy))
    halves = [
        packed_rows(PackedBatchSampler(packs, 4, rank=rank, world_size=2, seed=5, strategy=strategy)) for rank in (0, 1)
    ]
    accumulated = packed_rows(PackedBatchSampler(packs, 1, seed=5, strategy=strategy))
    for step, batch in enumerate(one):
        both = [row for half in halves for row in half[step] if row >= 0]
        assert sorted(both) == sorted(batch)
        assert sorted(row for part in accumulated[8 * step : 8 * step + 8] for row in part) == sorted(batch)


def test_packs_in_order_hold_the_rows_in_the_order_given_in_every_epoch():
    packs = plan_packs(LENGTHS, 64, in_order=True)
    sampler = PackedBatchSampler(packs, 2, seed=5, strategy="sequential")
    for epoch in (0, 1):
        assert [row for batch in packed_rows(sampler, epoch) for row in batch] == list(range(500))
    halves = [
        packed_rows(PackedBatchSampler(packs, 1, rank=rank, world_size=2, strategy="sequential")) for rank in (0, 1)
    ]
    together = [sorted(row for half in both for row in half if row >= 0) for both in zip(*halves, strict=True)]
    assert together == packed_rows(sampler)


def test_a_rank_without_a_pack_gets_a_pack_of_fillers():
    packs = plan_packs(np.array([5, 5, 5]), 10)
    own, other = (
        packed_rows(PackedBatchSampler(packs, 2, rank=rank, world_size=2, strategy="sequential")) for rank in (0, 1)
    )
    assert sorted(own[0] + other[0]) == [0, 1, 2]
    packs = plan_packs(np.array([5, 5, 5, 5, 5]), 10)
    own, other = (
        packed_rows(PackedBatchSampler(packs, 1, rank=rank, world_size=2, strategy="sequential")) for rank in (0, 1)
    )
    assert [len(own), len(other)] == [2, 2]
    assert other[1] == [filler(row) for row in own[1]]
