"""Null fields that Arrow adds to unify the rows of a column are not part of a row."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sft.configuration.schema import DataConfig
from sft.data.sources.arrow_values import ArrowValues
from sft.data.sources.load import open_sources
from tests.support.source_files import read_rows, rows_of


def call(**arguments):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}


def tool(**properties):
    return {"function": {"name": "f", "parameters": {"properties": properties}}}


ROWS = [
    {"tools": [tool(city={"type": "string"})], "messages": [{"role": "user", "content": "?"}, call(city="Oslo")]},
    {"tools": [tool(zone={"type": "string", "enum": ["CET", None]})], "messages": [call(zone="CET", days=[{"n": 1}])]},
    {"tools": [tool(all={"items": {"deep": {"x": 1}}})], "messages": [call(days=[{"n": 1}, {"end": {"at": "8"}}])]},
    {"tools": None, "messages": [{"role": "user", "content": "?", "name": "Ann"}, {"role": "assistant"}], "note": "n"},
]
"""Each has fields that the others lack, in structs, in lists of structs, and at several depths."""


def as_parquet_file(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"note": None, **row} for row in ROWS]), path)
    return read_rows(path)


def as_large_lists(path):
    """As polars writes them."""
    table = pyarrow.Table.from_pylist([{"note": None, **row} for row in ROWS])
    large = [
        pyarrow.large_list(field.type.value_type) if field.name == "tools" else field.type for field in table.schema
    ]
    pyarrow.parquet.write_table(table.cast(pyarrow.schema(list(zip(table.schema.names, large, strict=True)))), path)
    return read_rows(path)


def as_saved_dataset(path):
    made = datasets.Dataset.from_list([{"note": None, **row} for row in ROWS])
    made.save_to_disk(str(path))
    return rows_of(open_sources(DataConfig(dataset_name=str(path))).train[0])


def as_json_type(path):
    """`datasets` keeps objects of different types as JSON text, in the Arrow type JSON."""
    made = datasets.Dataset.from_list([{"note": None, **row} for row in ROWS], on_mixed_types="use_json")
    made.to_parquet(path)
    return read_rows(path)


@pytest.mark.parametrize("read", [as_parquet_file, as_large_lists, as_saved_dataset, as_json_type])
def test_rows_of_arrow_have_only_their_own_fields(tmp_path, read):
    assert [row.record for row in read(tmp_path / "a.parquet")] == [{"note": None, **row} for row in ROWS]


@pytest.mark.parametrize("value", [{"a": None}, [{"a": [None]}], {"a": {"b": None}}, {"a": [{"b": None}]}], ids=str)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_rows_of_json_keep_their_nulls(tmp_path, value, kind):
    text = json.dumps(value)
    quoted = text.replace('"', '""')
    content = {"jsonl": f'{{"x": {text}}}\n', "json": f'[{{"x": {text}}}]', "csv": f'x\n"{quoted}"\n'}[kind]
    (tmp_path / f"a.{kind}").write_text(content)
    (row,) = read_rows(tmp_path / f"a.{kind}")
    assert row.record == {"x": text if kind == "csv" else value}


def test_objects_of_the_type_json_keep_their_nulls():
    field = pyarrow.field("x", pyarrow.list_(pyarrow.json_()))
    assert ArrowValues([field], parse_json=True)({"x": ['{"a": null}', "no JSON", None]}) == {
        "x": [{"a": None}, "no JSON", None]
    }
    assert ArrowValues([field])({"x": [{"a": None}]}) == {"x": [{"a": None}]}


def test_columns_of_unknown_types_lose_every_null_in_objects():
    assert ArrowValues(None)({"x": [{"a": None, "b": {"c": None}}, None], "y": None}) == {
        "x": [{"b": {}}, None],
        "y": None,
    }
