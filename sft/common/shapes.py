"""Whether a record that was read from a file has the shape that its readers expect.

A shape is a type (`str`, `int`, `NUMBER`, `dict`, `list`), a tuple of shapes of which one must fit, a mapping of keys
to the shapes of their values, a list of one shape (`[str]`), or `Each(shape)` for a mapping with any keys. A key that
is missing or null fits, as older versions wrote fewer, unless the shape's key ends in `!`; other keys fit as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = {dict: "a mapping", list: "a list", str: "a text", int: "an integer", float: "a number", bool: "true or false"}
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Each:
    """A mapping with any keys."""

    shape: Any
    """Of all its values."""


NUMBER = (int, float)
_MAX_BITS = 1000
"""Of an integer; a larger one is no float, and cannot be printed."""


def find_misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """The first place at which a value does not fit: `batch_plan.parts: expected an integer, ...`; None if it fits.

    Args:
        value: as read from JSON or YAML.
        shape: what is expected.
        where: the keys that lead to the value.
    """
    if isinstance(shape, tuple):
        misfits = [find_misfit(value, each, where) for each in shape]
        return None if None in misfits else misfits[-1]
    if isinstance(shape, Each | dict):
        if not isinstance(value, Mapping):
            return _misfit(value, dict, where)
        inner = {f"{key}!": shape.shape for key in value} if isinstance(shape, Each) else shape
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return _misfit(value, list, where)
        inner = dict.fromkeys(range(len(value)), shape[0])
    else:
        return None if isinstance(value, shape) and _is_plain(value, shape) else _misfit(value, shape, where)
    for key, expected in inner.items():
        found = _inner(value, key, expected, f"{where}.{key}" if where else str(key))
        if found is not None:
            return found
    return None


def is_too_deep(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested in more than so many levels. Without recursion."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for each in layer
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not layer:
            return False
    return any(isinstance(each, dict | list) for each in layer)


def _inner(value: Any, key: Any, expected: Any, where: str) -> str | None:
    if isinstance(key, str) and key.endswith("!"):
        name, where = key[:-1], where[:-1]
        return f"{where} is missing" if name not in value else find_misfit(value[name], expected, where)
    if isinstance(value, Mapping) and value.get(key) is None:
        return None
    return find_misfit(value[key], expected, where)


def _is_plain(value: Any, shape: type) -> bool:
    """Whether a value is not a special case of its type: true and false are integers in Python, of any size."""
    if shape not in (int, float):
        return True
    return not isinstance(value, bool) and not (isinstance(value, int) and value.bit_length() > _MAX_BITS)


def _misfit(value: Any, shape: type, where: str) -> str:
    text = f"{value!r}"
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
    return f"{where}{': ' if where else ''}expected {_NAMES.get(shape, shape.__name__)}, found {shown}"
