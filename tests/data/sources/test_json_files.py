"""JSON files to rows."""

import json
import tracemalloc
from pathlib import Path

import pytest

from sft.common.errors import DataError
from sft.data.sources.json_arrays import JsonWindow, array_entries
from sft.data.sources.json_rows import checked_record
from sft.data.sources.readers import read_file
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


def test_rows_of_an_array_in_one_line_are_numbered(tmp_path):
    (tmp_path / "one.json").write_text('[{"a": 1}, 2, {"a": 3}]\n')
    (tmp_path / "lines.json").write_text('[{"a": 1},\n\n2, {"a": 3}]\n')
    assert [row.source.line for row in read_rows(tmp_path / "one.json")] == [1, 2, 3]
    (tmp_path / "one.json").write_text('\n\n[{"a": 1}, 2, {"a": 3}]\n')
    assert [row.source.line for row in read_rows(tmp_path / "one.json")] == [1, 2, 3]
    assert [row.source.line for row in read_rows(tmp_path / "lines.json")] == [1, 3, 3]
    (tmp_path / "broken.json").write_text('[{"a": 1}, {"a": 2}, {"a": tru}]')
    with pytest.raises(DataError, match=r"broken.json:1: invalid JSON in row 3, expecting value; the rows"):
        list(read_rows(tmp_path / "broken.json"))


RECORDS = [{"text": "\u00e9\U0001f600 " * i, "n": i * 10**6, "t": [True, None, -1.5e-3]} for i in range(12)]


@pytest.mark.parametrize("layout", ["one line", "indented", "numbers"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_an_array_is_the_same_in_blocks_of_any_size(layout, size):
    values = [12345, "x", None, True, 3.25, [1], -7] if layout == "numbers" else RECORDS
    data = json.dumps(values, indent=2 if layout == "indented" else None, ensure_ascii=False).encode()
    window = JsonWindow(Path("a.json"), (data[i : i + size] for i in range(0, len(data), size)))
    found = list(array_entries(window, is_document=True))
    expected = [entry if isinstance(entry, dict) else checked_record(entry) for entry in values]
    assert [entry for _, entry, _ in found] == expected
    text = data.decode()
    ends = [reached for *_, reached in found]
    assert ends == sorted(ends)
    assert text[ends[-1] :].strip() == "]"
    if layout == "indented":
        starts = [i + 1 for i, line in enumerate(text.split("\n")) if line == "  {"]
        assert [line for line, *_ in found] == starts


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_an_error_in_an_array_is_found_where_it_is_in_blocks_of_any_size(size):
    data = b'[\n{"a": "\xc3\xa9"},\n{"a": 1},\n{"a": "x" "y"}\n]'
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    with pytest.raises(DataError, match=r"a.json:4: invalid JSON in row 3, expecting ',' delimiter"):
        list(array_entries(JsonWindow(Path("a.json"), blocks)))
    blocks = [block.replace(b"x", b"\xff") for block in blocks]
    with pytest.raises(DataError, match=r"a.json:4: not UTF-8 text \(byte 0xff\)"):
        list(array_entries(JsonWindow(Path("a.json"), blocks)))


def test_a_long_array_is_read_in_constant_memory(tmp_path):
    path = tmp_path / "long.json"
    row = json.dumps({"text": "word " * 200})
    path.write_text(f"[{', '.join([row] * 40_000)}]")
    num_rows = 0
    tracemalloc.start()
    for block, _ in read_file(path):
        num_rows += block.num_rows
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 40_000
    assert peak < path.stat().st_size / 4
