"""JSON files to rows."""

import json

import pytest

from tests.support.source_files import ROWS, read_rows


@pytest.mark.parametrize("document", [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": [{}], "id": 1}])
def test_read_file_reads_a_single_json_record_as_a_row(tmp_path, document):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert [row.record for row in read_rows(path)] == [document]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (b'{"a": 1', "invalid_json", "invalid JSON, expecting ',' delimiter at column 8"),
        (b"{'a': 1}", "invalid_json", "invalid JSON, expecting property name enclosed in double quotes at column 2"),
        (b'{"a": "\xe9"}', "not_utf8", "not UTF-8 text (byte 8 of the line)"),
        (b"[1]", "not_an_object", "expected an object with named fields, found a list"),
        (b"null", "not_an_object", "expected an object with named fields, found null"),
        (b"true", "not_an_object", "expected an object with named fields, found true/false"),
        (b"3.5", "not_an_object", "expected an object with named fields, found a number"),
        (b'"x"', "not_an_object", "expected an object with named fields, found text"),
        (b'{"a": ' + b"1" * 5000 + b"}", "invalid_json", "invalid JSON, Exceeds the limit"),
        (b"[" * 100_000, "invalid_json", "invalid JSON, nested too deeply"),
        (b'{"\\ud800": 1}', "not_unicode", "the name of a field contains an unpaired surrogate"),
        (b'{"a": "\x00"}', "invalid_json", "invalid JSON, invalid control character at column 8"),
    ],
)
def test_read_file_counts_a_bad_line_and_continues(tmp_path, line, reason, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(path)
    assert (first.record, last.record) == ({"a": 1}, {"a": 2})
    assert (bad.record, bad.problem.reason, bad.source.line) == (None, reason, 2)
    assert bad.problem.message.startswith(message)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("twice.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n'),
        ("twice.json", '[{"text": "a", "text": "b"},\n{"text": "c"}]'),
        ("inside.jsonl", '{"text": "x", "more": {"text": 1, "text": 2}}\n{"text": "c"}\n'),
    ],
)
def test_read_file_refuses_a_duplicate_field(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    first, second = read_rows(path)
    assert (first.problem.reason, first.problem.message) == (
        "duplicate_field",
        "the field 'text' occurs twice in one object",
    )
    assert (second.record, second.source.line) == ({"text": "c"}, 2)


@pytest.mark.parametrize(
    "content",
    [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\ufeff" + json.dumps(ROWS)]
    + [f"[{json.dumps(ROWS[0])}{between}{json.dumps(ROWS[1])}\n]" for between in (",\n", "\n,", "\n , \n")],
)
def test_read_file_reads_an_array_that_is_named_jsonl(tmp_path, content):
    path = tmp_path / "array.jsonl"
    path.write_text(content, encoding="utf-8")
    assert [row.record for row in read_rows(path)] == ROWS


def test_read_file_reads_lists_on_separate_lines_as_bad_rows(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('[{"text": "a"}]\n[{"text": "b"}]\n{"text": "c"}\n')
    assert [row.problem and row.problem.reason for row in read_rows(path)] == ["not_an_object"] * 2 + [None]


def test_read_file_refuses_rows_that_are_nested_too_deeply(tmp_path):
    lines = [f'{{"text": "{"[{" * 500}", "x": {"[" * depth}{"]" * depth}}}' for depth in (99, 100, 500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.json").write_text(f"[{', '.join(lines)}]")
    for name in ("a.jsonl", "a.json"):
        problems = [row.problem and row.problem.reason for row in read_rows(tmp_path / name)]
        assert problems == [None, "nested_too_deeply", "nested_too_deeply"]


def test_read_file_counts_bad_bytes_in_json_lines_that_are_named_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n{"a": 3}\n')
    assert [row.problem and row.problem.reason for row in read_rows(tmp_path / "a.json")] == [None, "not_utf8", None]


def test_read_file_refuses_a_duplicate_field_in_a_file_of_one_record(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a",\n "text": "b"}')
    assert [row.problem.reason for row in read_rows(tmp_path / "a.json")] == ["duplicate_field"]
