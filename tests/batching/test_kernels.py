"""The predicted memory of generated kernels: it follows the shapes of a run."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sft.batching.kernels import kernel_bytes

SPREAD, EQUAL = np.arange(20, 120), np.full(100, 64)
of_model = partial(kernel_bytes, hidden_size=16, intermediate_size=32)


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_rows_of_one_length_need_the_kernels_of_one_shape(count):
    assert of_model(EQUAL, 4, count) == 18 * 3 * 2**18 + 3 * 2 * 16 * (16 + 32)


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_more_batches_and_more_lengths_need_more_kernels_up_to_a_limit(rows):
    sizes = [of_model(SPREAD, rows, count) for count in (1, 10, 100, 10**7)]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= 1400 * 3 * 2**18 + 117 * 3 * 2 * 16 * (16 + 32)
    assert of_model(EQUAL, rows, 100) < of_model(SPREAD, rows, 100)


def test_larger_layers_need_more():
    assert kernel_bytes(SPREAD, 4, 100, hidden_size=64, intermediate_size=32) > of_model(SPREAD, 4, 100)


@pytest.mark.parametrize(
    ("model", "steps", "measured"), [((192, 512), 100, 1514), ((192, 512), 440, 1843), ((576, 1536), 60, 1735)]
)
def test_the_prediction_is_within_10_percent_of_measured_peaks(model, steps, measured):
    """Rows like those of the sample configuration; the rest of the process was predicted as 614 and 707 MiB."""
    lengths = np.random.default_rng(1).normal(57, 13, 2000).clip(45, 84).round().astype(int)
    rest = {192: 614, 576: 707}[model[0]]
    found = rest + kernel_bytes(lengths, 16, steps, hidden_size=model[0], intermediate_size=model[1]) / 2**20
    assert found == pytest.approx(measured, rel=0.1)
