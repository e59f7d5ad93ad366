"""The trend at the end of a curve: shapes as runs record them, with and without fluctuation."""

from __future__ import annotations

import random

import pytest

from sft.reporting.report.verdicts.trend import FALLING, FLAT, NOISY, RISING, TOO_FEW, find_trend, fluctuation


def curve(shape, count, noise=0.0, seed=0):
    """`count` evaluations, one every 1,000 tokens, with normal noise."""
    draw = random.Random(seed)
    return [(1000.0 * number, shape(number) + draw.gauss(0, noise)) for number in range(1, count + 1)]


def points(*losses):
    return [(1000.0 * number, loss) for number, loss in enumerate(losses, start=1)]


SHAPES = {
    "each fall larger than the last": (points(2.5, 2.48, 2.45, 2.41), FALLING),
    "each fall larger, all small": (points(2.5, 2.495, 2.485, 2.47), FALLING),
    "straight": (curve(lambda n: 3 - 0.1 * n, 10), FALLING),
    "straight, many small falls": (curve(lambda n: 3 - 0.005 * n, 40), FALLING),
    "one over the square root": (curve(lambda n: 1.3 + n**-0.5, 9), FALLING),
    "three, falling": (points(1.2, 1.1, 1.05), FALLING),
    "falling, with a short last interval": ([(100, 2.0), (200, 1.8), (300, 1.6), (305, 1.595)], FALLING),
    "falling per token, unevenly spaced": ([(100, 2.0), (200, 1.9), (250, 1.85)], FALLING),
    "halved towards 1": (curve(lambda n: 1 + 2 * 0.5**n, 8), FLAT),
    "twenty, towards 1": (curve(lambda n: 1 + 2 * 0.7**n, 20), FLAT),
    "three, then flat": (points(1.2, 1.1, 1.099), FLAT),
    "constant": (points(1, 1, 1, 1, 1), FLAT),
    "smaller than 0.2 %": (points(1, 0.9995, 0.999), FLAT),
    "parabola": (curve(lambda n: 1 + 0.01 * (n - 5) ** 2, 9), RISING),
    "three, rising": (points(1.5, 1.2, 1.4), RISING),
    "up and down": (points(1.0, 1.1, 0.95, 1.08, 0.97), NOISY),
    "down, up, down": (points(1.3, 1.0, 1.3, 1.0), NOISY),
    "up, then down": (points(1.0, 1.1, 0.95), NOISY),
    "two": (points(2.0, 1.0), TOO_FEW),
    "none": ([], TOO_FEW),
    "three, of which one at the same step and one NaN": ([(1, 1.0), (2, 0.9), (2, 0.9), (3, float("nan"))], TOO_FEW),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_trend_of_a_shape(shape):
    given, kind = SHAPES[shape]
    assert find_trend(given).kind == kind


@pytest.mark.parametrize(
    ("shape", "count", "noise", "kind"),
    [
        (lambda n: 3 - 0.05 * n, 20, 0.02, {FALLING}),
        (lambda n: 1 + 2 * 0.5**n, 12, 0.003, {FLAT}),
        (lambda n: 1 + 0.02 * (n - 6) ** 2, 12, 0.02, {RISING}),
        (lambda n: 1.0, 12, 0.05, {NOISY}),
        (lambda n: 1.0, 12, 0.001, {FLAT}),
    ],
)
def test_trend_with_noise_is_the_same_for_nearly_every_noise(shape, count, noise, kind):
    found = [find_trend(curve(shape, count, noise, seed)).kind for seed in range(50)]
    assert sum(each in kind for each in found) >= 40, found


def test_fluctuation_is_that_of_the_noise_and_none_of_a_smooth_curve():
    assert fluctuation([loss for _, loss in curve(lambda n: 1 + 0.01 * (n - 5) ** 2, 20)]) < 1e-9
    measured = [fluctuation([loss for _, loss in curve(lambda n: 2 - 0.01 * n, 200, 0.1, seed)]) for seed in range(20)]
    assert sum(measured) / len(measured) == pytest.approx(0.1, rel=0.15)
    assert fluctuation([1.0, 2.0, 1.0, 2.0]) == 0.0


def test_the_further_fall_shrinks_as_the_last_ones_did():
    trend = find_trend(points(2.0, 1.5, 1.25))
    assert (trend.earlier, trend.later, trend.expected) == (0.5, 0.25, 0.125)
