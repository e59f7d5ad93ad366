"""The estimate of the time left."""

from __future__ import annotations

import pytest

from sft.reporting.time_left import TimeLeft, clock


def test_time_left_counts_what_is_still_to_come():
    left = TimeLeft(first_step=0, total_steps=100, evaluation_every=30, saving_every=50)
    assert left.seconds() is None
    left.add_wait("evaluating", 7.0)
    left.add_wait("saving", 4.0)
    left.add_step(10, 20.0)
    assert left.seconds() == 90 * 2 + 4 * 7 + 2 * 4  # at 30, 60, 90 and the end; at 50 and 100
    left.add_step(30, 60.0)
    assert left.seconds() == 70 * 2 + 4 * 7 + 2 * 4, "the evaluation of this step is still to come"
    left.add_wait("evaluating", 10.0)
    assert left.seconds() == 70 * 2 + 3 * 10 + 2 * 4


def test_time_left_follows_the_last_steps():
    left = TimeLeft(first_step=100, total_steps=400, evaluation_every=None, saving_every=0)
    for step in range(101, 201):
        left.add_step(step, (step - 100) * 1.0)
    for step in range(201, 301):
        left.add_step(step, 100 + (step - 200) * 3.0)
    assert left.seconds() == 300
    left.add_wait("saving", 5.0)
    assert left.seconds() == 305


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "0:07"), (754, "12:34"), (11100, "3:05:00"), (2 * 86400 + 11100, "2 d 03:05")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
