"""Strict parsing of one JSON text to one row: what could be understood in two ways is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sft.common.data_records import RowProblem

MAX_NESTING = 100
"""Maximum nesting of lists and objects in a row. Deeper rows would exceed recursion limits, e.g. of pickle."""


class DuplicateField(ValueError):
    """An object has a field twice, and either value may be meant."""


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object, as a hook of a JSON decoder.

    Raises:
        DuplicateField: If a name occurs twice.
    """
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateField(f"the field {twice[:40]!r} occurs twice in one object")
    return record


STRICT_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)
"""Built once: `json.loads` builds a decoder at each call with a hook, which is 1.5 times as slow for a row of 1 KB."""


def parse_json_line(line: bytes) -> Mapping[str, Any] | RowProblem:
    """The record in a line of JSON Lines, or what is wrong with it."""
    try:
        text = line.rstrip().decode("utf-8")
        return checked_record(_parse(text), num_brackets=text.count("[") + text.count("{"))
    except DuplicateField as error:
        return RowProblem(reason="duplicate_field", message=str(error))
    except UnicodeDecodeError as error:
        position = f"byte {error.start + 1} of the line"
        return RowProblem(reason="not_utf8", message=f"not UTF-8 text ({position}); save the file as UTF-8")
    except json.JSONDecodeError as error:
        message = f"invalid JSON, {json_complaint(error)} at column {error.colno}"
        return RowProblem(reason="invalid_json", message=message)
    except (ValueError, RecursionError) as error:
        return RowProblem(reason="invalid_json", message=f"invalid JSON, {json_complaint(error)}")


def checked_record(record: Any, *, num_brackets: int = 0) -> Mapping[str, Any] | RowProblem:
    """The record, if it is an object with valid field names that is not nested deeper than `MAX_NESTING`.

    Args:
        record: Any value that JSON or Parquet can hold.
        num_brackets: Number of opening brackets in its text. With few of them it cannot be nested deeply, and the check
            is skipped.
    """
    if not isinstance(record, dict):
        kind = {list: "a list", str: "text", type(None): "null", bool: "true/false"}.get(type(record), "a number")
        message = f"expected an object with named fields, found {kind}"
        return RowProblem(reason="not_an_object", message=message)
    try:
        "".join(record).encode("utf-8")
    except UnicodeEncodeError:
        message = "the name of a field contains an unpaired surrogate, which is not a character"
        return RowProblem(reason="not_unicode", message=message)
    if num_brackets > MAX_NESTING and _is_too_deep(record):
        return RowProblem(reason="nested_too_deeply", message=f"nested too deeply: more than {MAX_NESTING} levels")
    return record


def json_complaint(error: Exception) -> str:
    """What is wrong with a JSON text, without the position."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
    return "nested too deeply" if isinstance(error, RecursionError) else short_line(error)


def short_line(error: Exception) -> str:
    """The message of a library's exception, shortened to one line without a full stop."""
    return (" ".join(str(error).split()) or type(error).__name__)[:160].rstrip(".")


def _parse(text: str) -> Any:
    try:
        record, end = STRICT_DECODER.raw_decode(text)
        if end == len(text):
            return record
    except json.JSONDecodeError:
        pass  # leading white space, a byte-order mark or an error: `json.loads` handles or reports it
    return json.loads(text, object_pairs_hook=unique_fields)


def _is_too_deep(record: Any) -> bool:
    level = [record]
    for _ in range(MAX_NESTING):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
