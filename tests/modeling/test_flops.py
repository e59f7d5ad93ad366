"""The cost of training by the usual formula."""

from __future__ import annotations

import pytest

from sft.common.run_records import ModelFootprint
from sft.modeling.flops import training_flops


@pytest.mark.parametrize(("adapters", "expected"), [(False, 6 * 90 * 10), (True, 4 * 80 * 10 + 6 * 10 * 10)])
def test_training_flops_by_hand(adapters, expected):
    size = ModelFootprint(
        num_parameters=100,
        num_trainable_parameters=10 if adapters else 100,
        weight_bytes=400,
        hidden_size=4,
        num_layers=2,
        vocab_size=7,
        num_lookup_parameters=10,
    )
    # Two documents of 3 and 7 tokens.
    assert training_flops(size, tokens=10, squares=9 + 49) == expected + 6 * 2 * 4 * 58
