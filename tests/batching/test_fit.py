"""The batch size that fits: properties over random fake devices that raise the real out-of-memory error."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import OutOfMemoryError

from sft.batching.fit import SLACK, Trial, candidate_sizes, fit_batch_size

MIB = 2**20


class FakeDevice:
    """A device whose memory and time are linear in the micro-batch size, with noise; it runs out of memory."""

    def __init__(self, generator: random.Random, *, skew: float = 1.0):
        self.base = generator.randint(100, 20_000) * MIB
        self.per_row = int(generator.randint(1, 4_000) * MIB * skew)
        self.total = self.base + generator.randint(1, 80_000) * MIB
        self.overhead = generator.choice([0.0, 0.001, 0.05, 0.5])
        self.row_seconds = generator.uniform(1e-4, 1e-2)
        self.noise = generator.choice([0.0, 0.01, 0.05])
        self.seed = generator.random()
        self.most_held = 0

    def true_bytes(self, size: int) -> int:
        return self.base + self.per_row * size

    def measure(self, size: int) -> Trial:
        noise = random.Random(f"{self.seed} {size}")
        # An allocator holds at least what is used.
        peak = int(self.true_bytes(size) * (1 + self.noise * noise.random()))
        self.most_held = max(self.most_held, min(peak, self.total))
        if peak > self.total:
            raise OutOfMemoryError("fake")
        seconds = (self.overhead + self.row_seconds * size) * (1 + self.noise * noise.random())
        return Trial(size=size, tokens=512 * size, peak_bytes=peak, seconds=seconds)

    def does_not_fit(self, size: int, budget: int) -> bool:
        try:
            return self.measure(size).peak_bytes > budget * (1 - SLACK)
        except OutOfMemoryError:
            return True

    def predict(self, size: int) -> int:
        return int(self.per_row * size * 0.9)

    def fit(self, candidates, budget):
        return fit_batch_size(candidates, self.measure, budget, predict=self.predict)


def test_ten_thousand_random_devices_keep_the_contract():
    generator = random.Random(0)
    found = 0
    for _ in range(10_000):
        world = generator.choice([1, 2, 3, 4, 8])
        rows_per_device = generator.randint(1, 96)
        candidates = candidate_sizes(rows_per_device, most=10_000)
        devices = [FakeDevice(generator, skew=generator.choice([1.0, 1.0, 1.3])) for _ in range(world)]
        budget = int(min(device.total for device in devices) * generator.uniform(0.3, 1.0))
        fits = [device.fit(candidates, budget) for device in devices]
        chosen = min(fit.size or 0 for fit in fits)
        if not chosen:
            assert any(device.does_not_fit(candidates[0], budget) for device in devices)
            continue
        found += 1
        # The product is the global batch, exactly.
        assert rows_per_device % chosen == 0
        assert chosen * (rows_per_device // chosen) * world == rows_per_device * world
        # No device exceeds the budget, whichever has the least memory.
        assert all(device.true_bytes(chosen) <= budget for device in devices)
        # A larger budget never gives less.
        more = [device.fit(candidates, int(budget * generator.uniform(1.0, 3.0))) for device in devices]
        assert all((new.size or 0) >= (old.size or 0) for new, old in zip(more, fits, strict=True))
        # The result is reproducible.
        assert [device.fit(candidates, budget) for device in devices] == fits
    assert found > 4_000


@given(
    rows=st.integers(1, 96),
    base=st.integers(1, 20_000),
    per_row=st.integers(1, 4_000),
    total=st.integers(1, 80_000),
    share=st.floats(0.3, 1.0),
    more=st.floats(1.0, 3.0),
    row_seconds=st.floats(1e-4, 1e-2),
    overhead=st.floats(0.0, 0.5),
)
@settings(max_examples=100, deadline=None)
def test_a_fit_is_within_the_budget_and_divides_the_rows_of_a_step(
    rows, base, per_row, total, share, more, row_seconds, overhead
):
    def measure(size):
        peak = (base + per_row * size) * MIB
        if peak > total * MIB:
            raise OutOfMemoryError("fake")
        return Trial(size=size, tokens=512 * size, peak_bytes=peak, seconds=overhead + row_seconds * size)

    candidates, budget = candidate_sizes(rows, most=10_000), int(total * MIB * share)
    assert all(rows % size == 0 for size in candidates)
    fit = fit_batch_size(candidates, measure, budget, predict=lambda size: per_row * size * MIB)
    if fit.size is None:
        assert (base + per_row * candidates[0]) * MIB > int(budget * (1 - SLACK))
        return
    assert rows % fit.size == 0
    assert (base + per_row * fit.size) * MIB <= budget
    larger = fit_batch_size(candidates, measure, int(budget * more), predict=lambda size: per_row * size * MIB)
    assert larger.size >= fit.size


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        (64, 1000, [1, 2, 4, 8, 16, 32, 64]),
        (64, 10, [1, 2, 4, 8]),
        (12, 1000, [1, 2, 3, 6, 12]),
        (7, 1000, [1, 7]),
        (1, 1, [1]),
        (None, 100, [1, 2, 4, 8, 16, 32, 64]),
        (None, 1, [1]),
    ],
)
def test_candidate_sizes_divide_the_rows_of_a_device(rows, most, expected):
    assert candidate_sizes(rows, most) == expected


def by_table(peaks, seconds):
    """A device given by tables: size -> MiB, size -> seconds."""

    def measure(size):
        return Trial(size=size, tokens=100 * size, peak_bytes=peaks[size] * MIB, seconds=seconds[size])

    return measure


def test_fit_batch_size_chooses_the_smallest_of_the_fast_sizes():
    peaks = {1: 100, 2: 200, 4: 400, 8: 800, 16: 1600}
    # 100, 190, 300, 306, 308 tokens a second: 4 is within 3 % of the best.
    seconds = {1: 1.0, 2: 200 / 190, 4: 400 / 300, 8: 800 / 306, 16: 1600 / 308}
    fit = fit_batch_size([1, 2, 4, 8, 16], by_table(peaks, seconds), 10_000 * MIB, predict=lambda size: 0)
    assert fit.size == 4
    assert [trial.size for trial in fit.trials] == [1, 2, 4, 8, 16]


def test_fit_batch_size_skips_sizes_that_are_expected_not_to_fit():
    peaks = {1: 150, 2: 250, 4: 450}
    fit = fit_batch_size([1, 2, 4, 8], by_table(peaks, {1: 1, 2: 1, 4: 1}), 700 * MIB, predict=lambda size: 0)
    assert (fit.size, [trial.size for trial in fit.trials]) == (4, [1, 2, 4])


def test_fit_batch_size_stops_where_speed_no_longer_grows():
    peaks = {size: size for size in (1, 2, 4, 8)}
    fit = fit_batch_size([1, 2, 4, 8], by_table(peaks, {1: 1, 2: 2, 4: 4}), 10_000 * MIB, predict=lambda size: 0)
    assert (fit.size, [trial.size for trial in fit.trials]) == (1, [1, 2, 4])


def test_fit_batch_size_returns_none_where_nothing_fits():
    fit = fit_batch_size([1, 2], by_table({1: 500}, {1: 1}), 400 * MIB, predict=lambda size: 0)
    assert fit.size is None
    assert [trial.peak_bytes for trial in fit.trials] == [500 * MIB]
