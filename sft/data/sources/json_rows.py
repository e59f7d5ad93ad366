"""One JSON text to one row, strictly: what two readers could understand in two ways is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sft.common.data_records import RowProblem

MOST_NESTED = 100
"""Levels of lists and objects in a row. Deeper ones break in whatever walks them: writing them, sending them."""


class FieldTwice(ValueError):
    """An object names a field twice: which of both was meant?"""


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields, as the hook of a JSON decoder.

    Raises:
        FieldTwice: if a name stands twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FieldTwice(f"the field {twice[:40]!r} stands twice in one object")
    return record


STRICT_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)
"""Made once: `json.loads` makes a new one at each call that names a hook, half as slow again for a row of 1 KB."""


def parse_json_line(line: bytes) -> Mapping[str, Any] | RowProblem:
    """The record of a line of JSON Lines, or what is wrong with it."""
    try:
        text = line.rstrip().decode("utf-8")
        return checked_record(_parse(text), num_brackets=text.count("[") + text.count("{"))
    except FieldTwice as error:
        return RowProblem(reason="duplicate_field", message=str(error))
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of the line"
        return RowProblem(reason="not_utf8", message=f"not UTF-8 text ({place}); save the file as UTF-8")
    except json.JSONDecodeError as error:
        message = f"invalid JSON, {json_complaint(error)} at column {error.colno}"
        return RowProblem(reason="invalid_json", message=message)
    except (ValueError, RecursionError) as error:
        return RowProblem(reason="invalid_json", message=f"invalid JSON, {json_complaint(error)}")


def checked_record(record: Any, *, num_brackets: int = 0) -> Mapping[str, Any] | RowProblem:
    """The record, if it is an object whose fields can be named, nested no deeper than `MOST_NESTED`.

    Args:
        record: any value that JSON or Parquet can hold.
        num_brackets: opening ones in its text; with few of them it cannot be nested deeply, and is not walked.
    """
    if not isinstance(record, dict):
        kind = {list: "a list", str: "text", type(None): "null", bool: "true/false"}.get(type(record), "a number")
        message = f"expected an object with named fields, found {kind}"
        return RowProblem(reason="not_an_object", message=message)
    try:
        "".join(record).encode("utf-8")
    except UnicodeEncodeError:
        message = "a field's name holds half a surrogate pair, which is no character"
        return RowProblem(reason="not_unicode", message=message)
    if num_brackets > MOST_NESTED and _is_too_deep(record):
        return RowProblem(reason="nested_too_deeply", message=f"nested too deeply: more than {MOST_NESTED} levels")
    return record


def json_complaint(error: Exception) -> str:
    """What is wrong with a JSON text, without its place."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
    return "nested too deeply" if isinstance(error, RecursionError) else short_line(error)


def short_line(error: Exception) -> str:
    """What a library says, on one line of bearable length, without a full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160].rstrip(".")


def _parse(text: str) -> Any:
    try:
        record, end = STRICT_DECODER.raw_decode(text)
        if end == len(text):
            return record
    except json.JSONDecodeError:
        pass  # Space in front of it, a byte-order mark, or an error: the slow way knows what to say.
    return json.loads(text, object_pairs_hook=unique_fields)


def _is_too_deep(record: Any) -> bool:
    level = [record]
    for _ in range(MOST_NESTED):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
