"""Which metrics share a plot, and on which scale."""

from __future__ import annotations

from sft.reporting.report.curves import find_curves
from tests.support.report_records import evaluation, falling, in_order


def test_curves_choose_their_scale_and_mark_the_best():
    wide = find_curves(in_order(falling(first=5.0, last=0.01), [evaluation(0, 5.0), evaluation(50, 0.3)]))
    assert (wide[0].title, wide[0].is_log, wide[0].marked) == ("Loss", True, (50, 0.3))
    narrow = find_curves(falling(first=2.0, last=1.0))
    assert (narrow[0].is_log, narrow[0].marked) == (False, None)
    assert [curve.title for curve in narrow] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Memory",
        "Utilization",
    ]
