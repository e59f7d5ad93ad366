"""Scores of answers, and their intervals."""

from __future__ import annotations

import pytest

from sft.common.answer_scores import SCORES, interval, last_number, summary


@pytest.mark.parametrize(
    ("name", "answer", "reference", "score"),
    [
        ("exact_match", " Yes\n", "Yes", 1),
        ("exact_match", "yes", "Yes", 0),
        ("contains", "It is 42, I think", "42", 1),
        ("contains", "It is 4", "42", 0),
        ("json_equal", '{"b": 1, "a": [2]}', '{"a": [2], "b": 1}', 1),
        ("json_equal", '{"a": 1', '{"a": 1}', 0),
        ("json_equal", '{"a": "1"}', '{"a": 1}', 0),
        ("number_match", "so 1,234.50 in all.", "#### 1234.5", 1),
        ("number_match", "3 and 4", "3", 0),
        ("number_match", "none", "3", 0),
        ("number_match", "-7", "7", 0),
    ],
)
def test_scores(name, answer, reference, score):
    assert SCORES[name](answer, reference) == score


@pytest.mark.parametrize(
    ("text", "number"), [("", None), ("a1b22", 22), ("1,000,000.", 1e6), (".5", 0.5), ("1e3", 1000), ("5 - 3", 3)]
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_intervals():
    low, high, by = interval([1] * 8 + [0] * 2)  # Wilson, by hand: (0.4902, 0.9433)
    assert (round(low, 4), round(high, 4), by) == (0.4902, 0.9433, "Wilson")
    assert interval([0.0] * 5)[0] == 0
    low, high, by = interval([0.2, 0.4, 0.6, 0.8])
    assert by == "bootstrap"
    assert 0.2 <= low < 0.5 < high <= 0.8
    assert interval([0.2, 0.4, 0.6, 0.8]) == (low, high, by)  # the same in every run


def test_summary():
    found = summary([{"a": 1.0}, {"a": 0.0, "b": 0.5}], [True, False])
    assert (found["a"], found["b"], found["rows"], found["ended"]) == (0.5, 0.5, 2, 1)
    assert set(found["intervals"]) == {"a", "b"}
