"""Files to rows: every kind of file, and what is wrong with it."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from sft.common.errors import DataError
from sft.data.sources.streams import zstd
from tests.support import messages
from tests.support.source_files import JSONL, ROWS, as_parquet, read_rows

CSV = 'question,answer\n1+1?,2\nÜnï\u2028日本?,"a, ""b""\nc"\n'.encode()


CONTENTS = {
    "a.jsonl": JSONL,
    "a.ndjson": JSONL,
    "crlf.jsonl": JSONL.replace(b"\n", b"\r\n"),
    "bom.jsonl": b"\xef\xbb\xbf" + JSONL,
    "no_last_line_end.jsonl": JSONL.rstrip(),
    "blank_lines.jsonl": JSONL.replace(b"\n", b"\n\n \r\n"),
    "array.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "wrapped.json": json.dumps({"version": [1], "data": ROWS, "n": {"data": []}}).encode(),
    "rows.json": json.dumps({"rows": ROWS}, indent=1).encode(),
    "lines.json": JSONL,
    "a.csv": CSV,
    "bom.csv": b"\xef\xbb\xbf" + CSV,
    "spaces.csv": CSV.replace(b"question,answer", b"question , answer"),
    "a.tsv": CSV.replace(b"question,answer", b"question\tanswer").replace(b"1+1?,", b"1+1?\t").replace(b'?,"', b'?\t"'),
    "a.parquet": as_parquet(ROWS),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_read_file_reads_every_kind(tmp_path, name, compression):
    data = CONTENTS[name]
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[compression]
    path = tmp_path / (name + compression)
    path.write_bytes(compress(data))
    assert [row.record for row in read_rows(path)] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b'\n{"a": 1}\n\n{"a": 2}\n', [2, 4]),
        ("a.json", b'[\n{"a": 1},\n\n {"a":\n 2}, {"a": 3}]', [2, 4, 5]),
        ("a.json", b'{"n": 1,\n "data": [\n{"a": 1},\n{"a": 2}\n]}', [3, 4]),
        ("a.csv", b'a,b\n1,"x\ny"\n\n3,4\n5,6\n', [2, 5, 6]),
        ("a.csv", b"\n\na,b\n1,2\n", [4]),
        ("a.txt", b"\none\n\n two\r\n", [2, 4]),
        ("a.parquet", as_parquet([{"a": 1}, {"a": 2}]), [1, 2]),
    ],
)
def test_read_file_reports_the_line_on_which_a_row_begins(tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    assert [row.source.line for row in read_rows(path)] == expected


def test_read_file_keeps_text_lines_as_they_are(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  one \r\n\n \t\nt\u2028w\x00o\x0c".encode())
    assert [row.record for row in read_rows(path)] == [{"text": "  one "}, {"text": "t\u2028w\x00o\x0c"}]


def test_read_file_counts_csv_rows_with_a_wrong_number_of_fields(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1\n1,2\n1,2,3\n")
    rows = list(read_rows(path))
    assert [row.problem and row.problem.message for row in rows] == [
        "1 fields, but the header has 2",
        None,
        "3 fields, but the header has 2",
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), ":1: UTF-16 text. Save the file as UTF-8."),
        ("a.csv", "a,b\n".encode("utf-16"), ":1: UTF-16 text. Save the file as UTF-8."),
        ("a.csv", "a,b\n1,caf\xe9\n".encode("latin-1"), ":2: not UTF-8 text (byte 0xe9). Save the file as UTF-8."),
        ("a.txt", b"one\n\xff", ":2: not UTF-8 text (byte 0xff). Save the file as UTF-8."),
        ("a.csv", b"a,a\n1,2\n", ":1: duplicate column name in the header: a, a."),
        ("a.csv", b"question;answer\n1;2\n", ":1: fields seem to be separated by ';'. Separate them by ','."),
        ("a.csv", b"\n\r\na;b\n1;2\n", ":3: fields seem to be separated by ';'. Separate them by ','."),
        ("a.tsv", b"question|answer\n1|2\n", ":1: fields seem to be separated by '|'. Separate them by '\\t'."),
        ("a.csv", b'a,b\n1,"x', ":2: not valid CSV: a quote opened in this row is never closed."),
        (
            "a.json",
            b'[{"a": 1},\n{"a"',
            ":2: invalid JSON in row 2, expecting ':' delimiter; the rows after it cannot be read.",
        ),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', ":2: invalid JSON after row 1, expecting ',' or ']' in the list of rows."),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', ":2: invalid JSON, unexpected text after the list of rows."),
        ("a.json", b"[]x", ":1: invalid JSON, unexpected text after the list of rows."),
        ("a.json", b"\nnonsense", ":2: invalid JSON, expecting value."),
        ("a.json", b'{"a": ' + b"1" * 5000 + b"}", ": invalid JSON, Exceeds the limit"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", ":1: invalid JSON in row 1, Exceeds the limit"),
        ("a.json", b"[" * 100_000, ":1: invalid JSON in row 1, nested too deeply; the rows after it cannot be read."),
        ("a.json", b'{"a":' * 100_000, ": invalid JSON, nested too deeply."),
        ("a.jsonl.gz", gzip.compress(JSONL * 50, mtime=0)[:-20], f": {messages.TRUNCATED_ARCHIVE}"),
        ("a.jsonl.gz", JSONL, ": cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(JSONL, mtime=0)[:10] + b"\xff" * 30,
            ": cannot be read: Error -3 while decompressing",
        ),
        ("a.jsonl.zst", zstd.compress(JSONL)[:-3], f": {messages.TRUNCATED_ARCHIVE}"),
        ("a.jsonl.zst", JSONL, ": cannot be read: Unable to decompress"),
        ("a.parquet", JSONL, ": not a readable Parquet file: "),
        ("a.parquet", b"", ": not a readable Parquet file: "),
        ("a.parquet", CONTENTS["a.parquet"][:-30], ": not a readable Parquet file: "),
    ],
)
def test_read_file_reports_what_is_wrong_with_a_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}{message}")


def test_read_file_names_the_row_whose_quote_is_never_closed(tmp_path):
    path = tmp_path / "open.csv"
    path.write_text('text\none\n"two\nthree\n')
    with pytest.raises(DataError, match=rf"open\.csv:3: .* {messages.OPEN_QUOTE}"):
        list(read_rows(path))


def test_read_file_accepts_a_lone_carriage_return_as_line_end_only_in_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\r1,2\r\r3,"4\r5"\r\n6,7\r')
    rows = read_rows(tmp_path / "a.csv")
    assert [row.record for row in rows] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4\r5"}, {"a": "6", "b": "7"}]
    assert [row.source.line for row in rows] == [2, 4, 6]
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\nthree")
    assert [row.record["text"] for row in read_rows(tmp_path / "a.txt")] == ["one\rtwo", "three"]


def test_read_file_refuses_parquet_with_duplicate_columns(tmp_path):
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: " + messages.pattern(messages.DUPLICATE_COLUMN, names="a, a")):
        read_rows(tmp_path / "a.parquet")
