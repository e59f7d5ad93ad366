"""The comparison of logits, and the bounds of rounding errors."""

from __future__ import annotations

import pytest
import torch

from sft.commands.export.verification import (
    UNIT_ROUNDOFF,
    compare_logits,
    compute_logits,
    max_merging_difference,
    max_rounding_difference,
)
from sft.common.errors import ModelError
from tests.support import messages
from tests.support.saved_models import IDS
from tests.support.small_models import ARCHITECTURES, build_model


def test_the_tolerance_is_close_to_the_measured_rounding():
    """The bound holds for every architecture, and is no more than some tens of times too wide."""
    for architecture in ARCHITECTURES:
        expected = compute_logits(build_model(architecture).eval(), IDS)
        for dtype in ("bfloat16", "float16"):
            model = build_model(architecture).eval()
            for parameter in model.parameters():
                parameter.data = parameter.data.to(getattr(torch, dtype)).float()
            share = compare_logits(compute_logits(model, IDS), expected).relative_rms
            assert UNIT_ROUNDOFF[dtype] / 20 < share < max_rounding_difference(model, dtype) < 60 * share


def test_a_nan_logit_never_passes():
    expected = torch.randn(3, 5)
    found = expected.clone()
    found[1, 2] = float("nan")
    assert compare_logits(found, expected).relative_rms == float("inf")
    assert compare_logits(expected, expected).relative_rms == 0
    assert max_merging_difference(build_model("llama")) < 1e-5


def test_check_difference_reports_both_numbers():
    from sft.commands.export.verification import check_difference

    difference = compare_logits(torch.ones(2, 3) + torch.eye(3)[:2], torch.arange(6.0).view(2, 3))
    with pytest.raises(
        ModelError,
        match=messages.DIFFERENCE.format(name="Mine", found=".*", bound="0.01 .*", positions=2),
    ):
        check_difference(difference, 0.01, "Mine")
