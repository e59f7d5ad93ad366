"""Shapes of records that were read from files."""

from __future__ import annotations

import pytest

from sft.common.shapes import NUMBER, Each, find_misfit, is_too_deep

RECORD = {"step!": int, "loss": NUMBER, "plan": {"parts!": int, "asked": dict}, "names": [str], "sizes": Each(int)}


@pytest.mark.parametrize(
    "value",
    [
        {"step": 1},
        {"step": 1, "loss": None, "plan": None, "names": None},
        {"step": 1, "loss": 2, "plan": {"parts": 1}, "names": [], "sizes": {}},
        {"step": 1, "loss": 2.5, "sizes": {"a": 1}, "of a newer version": [[]]},
    ],
)
def test_find_misfit_accepts(value):
    assert find_misfit(value, RECORD) is None


@pytest.mark.parametrize(
    ("value", "misfit"),
    [
        ([], "expected a mapping, found []"),
        (None, "expected a mapping, found None"),
        ({}, "step is missing"),
        ({"step": None}, "step: expected an integer, found None"),
        ({"step": True}, "step: expected an integer, found True"),
        ({"step": 10**400}, f"step: expected an integer, found 1{'0' * 55} ..."),
        ({"step": "1"}, "step: expected an integer, found '1'"),
        ({"step": 1, "loss": "x"}, "loss: expected a number, found 'x'"),
        ({"step": 1, "plan": {"asked": {}}}, "plan.parts is missing"),
        ({"step": 1, "plan": {"parts": 1.5}}, "plan.parts: expected an integer, found 1.5"),
        ({"step": 1, "names": ["a", 5]}, "names.1: expected a text, found 5"),
        ({"step": 1, "names": [None]}, "names.0: expected a text, found None"),
        ({"step": 1, "sizes": {"a": []}}, "sizes.a: expected an integer, found []"),
        ({"step": 1, "sizes": {"a": None}}, "sizes.a: expected an integer, found None"),
        ({"step": 1, "names": "x" * 100}, f"names: expected a list, found '{'x' * 55} ..."),
    ],
)
def test_find_misfit_names_the_key(value, misfit):
    assert find_misfit(value, RECORD) == misfit


@pytest.mark.parametrize("levels", [1, 5, 5_000])
def test_is_too_deep_counts_levels_without_recursion(levels):
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    assert is_too_deep(value, 64) == (levels > 64)
    assert not is_too_deep({"a": {"b": 5}}, 2)
    assert is_too_deep({"a": {"b": {}}}, 2)
    while value:  # or freeing it would recurse, too
        value = value.pop()
