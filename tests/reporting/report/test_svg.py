"""Curves and histograms as SVG."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from sft.common.data_records import LengthReport
from sft.reporting.report import svg
from sft.reporting.report.curves import find_curves
from sft.reporting.report.svg import curve_svg, element, histogram_svg, joined, short, thinned
from tests.support.report_records import evaluation, falling, in_order, words


def test_element_escapes_all_but_markup():
    assert element("p", "<b>", Markup("<i/>"), "3", None, class_='a"b') == '<p class="a&#34;b">&lt;b&gt;<i/>3</p>'
    assert joined("a", "<") == "a&lt;"
    assert element("meta", name="x") == '<meta name="x"/>'


def test_curve_stays_within_its_plot_and_shows_its_values():
    for curve in find_curves(in_order(falling(), [evaluation(0, 3.0), evaluation(50, 2.0)])):
        tree = ElementTree.fromstring(curve_svg(curve))
        _, _, width, height = map(float, tree.get("viewBox").split())
        for path in tree.iter("{http://www.w3.org/2000/svg}path"):
            for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d")):
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
        hovers = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
        assert hovers
        if curve.title == "Loss":
            assert "step 50\ntraining: 1.8158 nats/token\nvalidation: 2 nats/token\nbest validation" in hovers


def test_histogram_has_a_bar_for_each_bin():
    lengths = LengthReport(
        median=20, p90=30, p95=35, p99=40, longest=45, bin_edges=(10, 20, 30, 46), bin_counts=(40, 0, 10)
    )
    tree = ElementTree.fromstring(histogram_svg(lengths, 32))
    hovers = [title.text for title in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert hovers == ["10 to 19 tokens: 40 rows", "20 to 29 tokens: 0 rows", "30 to 45 tokens: 10 rows"]
    assert "max_seq_length 32" in words(tree)
    assert "max_seq_length" not in words(ElementTree.fromstring(histogram_svg(lengths, 256)))


def test_thinned_keeps_ends_and_peaks():
    points = [(float(x), 1.0) for x in range(10_000)]
    points[5001] = (5001.0, 99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 101
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (5001.0, 99.0) in kept
    assert thinned(points[:7], 100) == points[:7]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.002, "0.002"), (2e-5, "2e-5"), (12_500, "12.5k"), (3e6, "3M"), (1500, "1,500")]
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize("high", [0.0, 2.5e-323, 1e-310])
def test_values_that_hardly_differ_have_one_tick(high):
    assert svg._linear_ticks(0.0, high, 5) == [0.0]
