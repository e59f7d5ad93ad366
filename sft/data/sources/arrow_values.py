"""Values of Arrow columns as rows mean them.

All rows of an Arrow column (Parquet, a dataset of the `datasets` library) share one type: a struct has every field that
any row has, and where a row lacks a field, Arrow stores null. A tool that takes only a city would be shown, and a call
of it trained, with a null for every parameter of all other tools. So a null field of a struct is a missing field. A row
of a JSON file has the fields that are written there, and keeps its nulls; so does a column of the type JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow

Convert = Callable[[Any], Any]
_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")


class ArrowValues:
    """Converts the columns of one schema."""

    def __init__(self, fields: Iterable[pyarrow.Field] | None, *, parse_json: bool = False):
        """
        Args:
            fields: The columns; None if their types are unknown, and every null in an object is dropped.
            parse_json: Whether columns of the type JSON hold JSON text.
        """
        self._parse_json = parse_json
        self.parses_json = False
        """Whether a column holds JSON text, which may be nested to any depth."""
        self._converters: dict[str, Convert] | None = None
        if fields is not None:
            found = ((field.name, self._converter(field.type)) for field in fields)
            self._converters = {name: convert for name, convert in found if convert is not None}

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record without the null fields of its structs. A column that is null stays."""
        if self._converters is None:
            return {name: _without_nulls(value) for name, value in record.items()}
        for name, convert in self._converters.items():
            record[name] = convert(record[name])
        return record

    def _converter(self, kind: pyarrow.DataType) -> Convert | None:
        """Converts a value of this type; None if there is nothing to convert."""
        if pyarrow.types.is_struct(kind):
            fields = {field.name: self._converter(field.type) for field in kind}
            return lambda value: _struct(value, fields)
        if any(getattr(pyarrow.types, is_kind)(kind) for is_kind in _LISTS if hasattr(pyarrow.types, is_kind)):
            item = self._converter(kind.value_type)
            return None if item is None else lambda value: _list(value, item)
        if self._parse_json and str(kind) == "extension<arrow.json>":
            self.parses_json = True
            return _parsed
        return None


def _struct(value: Any, fields: Mapping[str, Convert | None]) -> Any:
    if not isinstance(value, dict):
        return value  # missing, or an object that a dataset decodes (an image)
    kept = ((name, fields.get(name), inner) for name, inner in value.items() if inner is not None)
    return {name: inner if convert is None else convert(inner) for name, convert, inner in kept}


def _list(value: Any, item: Convert) -> Any:
    return [item(inner) for inner in value] if isinstance(value, list) else value


def _parsed(value: Any) -> Any:
    with suppress(ValueError, RecursionError):  # text that is not JSON is refused where its column is read
        return json.loads(value) if isinstance(value, str) else value
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
