"""Files to rows: every kind, every way in which a file can be broken."""

import csv
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.chunks import MAX_BYTES, MAX_ROWS
from sft.data.sources.files import file_format, find_files, group_by_split
from sft.data.sources.load import open_sources
from sft.data.sources.readers import read_file
from sft.data.sources.streams import zstd
from tests.support.parts import REPOSITORY

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "Ünï\u2028日本?", "answer": 'a, "b"\nc'}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = 'question,answer\n1+1?,2\nÜnï\u2028日本?,"a, ""b""\nc"\n'.encode()


def read_rows(path):
    return [row for block, _ in read_file(path) for row in block.rows()]


def rows_of(source):
    return [row for chunk in source.chunks() for row in chunk.rows()]


def _parquet(rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


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
    "a.parquet": _parquet(ROWS),
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
        ("a.parquet", _parquet([{"a": 1}, {"a": 2}]), [1, 2]),
    ],
)
def test_read_file_gives_the_line_on_which_a_row_begins(tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    assert [row.source.line for row in read_rows(path)] == expected


def test_read_file_keeps_text_lines_as_they_are(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  one \r\n\n \t\nt\u2028w\x00o\x0c".encode())
    assert [row.record for row in read_rows(path)] == [{"text": "  one "}, {"text": "t\u2028w\x00o\x0c"}]


@pytest.mark.parametrize("document", [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": [{}], "id": 1}])
def test_read_file_takes_a_single_json_record_for_a_row(tmp_path, document):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert [row.record for row in read_rows(path)] == [document]


def test_read_file_reads_every_frame_of_an_archive(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(b'{"a": 1}\n') + zstd.compress(b'{"a": 2}\n'))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    for name in ("a.jsonl.zst", "a.jsonl.gz"):
        assert [row.record for row in read_rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


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
def test_read_file_counts_a_bad_line_and_goes_on(tmp_path, line, reason, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(path)
    assert (first.record, last.record) == ({"a": 1}, {"a": 2})
    assert (bad.record, bad.problem.reason, bad.source.line) == (None, reason, 2)
    assert bad.problem.message.startswith(message)


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
        ("a.json", b'[{"a": 1},\n{"a"', ":2: invalid JSON, expecting ':' delimiter; the rows after it cannot be read."),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', ":2: invalid JSON, expecting ',' or ']' in the list of rows."),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', ":2: invalid JSON, unexpected text after the list of rows."),
        ("a.json", b"[]x", ":1: invalid JSON, unexpected text after the list of rows."),
        ("a.json", b"\nnonsense", ":2: invalid JSON, expecting value."),
        ("a.json", b'{"a": ' + b"1" * 5000 + b"}", ": invalid JSON, Exceeds the limit"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", ":1: invalid JSON, Exceeds the limit"),
        ("a.json", b"[" * 100_000, ":1: invalid JSON, nested too deeply; the rows after it cannot be read."),
        ("a.json", b'{"a":' * 100_000, ": invalid JSON, nested too deeply."),
        ("a.jsonl.gz", gzip.compress(JSONL * 50, mtime=0)[:-20], ": cannot be read: the compressed file is truncated."),
        ("a.jsonl.gz", JSONL, ": cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(JSONL, mtime=0)[:10] + b"\xff" * 30,
            ": cannot be read: Error -3 while decompressing",
        ),
        ("a.jsonl.zst", zstd.compress(JSONL)[:-3], ": cannot be read: the compressed file is truncated."),
        ("a.jsonl.zst", JSONL, ": cannot be read: Unable to decompress"),
        ("a.parquet", JSONL, ": not a readable Parquet file: "),
        ("a.parquet", b"", ": not a readable Parquet file: "),
        ("a.parquet", CONTENTS["a.parquet"][:-30], ": not a readable Parquet file: "),
    ],
)
def test_read_file_says_what_is_wrong_with_a_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}{message}")


def test_read_file_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"no\.jsonl: no such file\.$"):
        list(read_rows(tmp_path / "no.jsonl"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JSONL", "jsonl"),
        ("a.csv.gz", "csv"),
        ("a.tsv", "csv"),
        ("a.txt.zst", "txt"),
        ("a.parquet", "parquet"),
        ("a.gz", None),
        ("a.json.bak", None),
        ("README", None),
    ],
)
def test_file_format_goes_by_the_ending(tmp_path, name, expected):
    assert file_format(tmp_path / name) == expected


@pytest.fixture
def data_folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.csv", "notes.md", ".hidden.jsonl", "_cache/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("*.jsonl", [".hidden.jsonl", "a.jsonl", "b.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.csv", ["sub/c.csv"]),
        (".", ["a.jsonl", "b.jsonl", "sub/c.csv"]),
        ("sub", ["sub/c.csv"]),
    ],
)
def test_find_files_takes_file_folder_and_glob(data_folder, monkeypatch, place, expected):
    assert [str(path.relative_to(data_folder)) for path in find_files(place, str(data_folder))] == expected
    assert find_files(str(data_folder / place)) == find_files(place, str(data_folder))
    monkeypatch.chdir(data_folder)
    assert [str(path) for path in find_files(place)] == expected


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "notes.md",
            "unknown kind of file. Supported: .jsonl, .ndjson, .json, .csv, .tsv, .txt, .text, .parquet, also",
        ),
        ("nowhere", "no such file or folder. Supported: .jsonl"),
        ("*.parquet", "no data files found. Supported: .jsonl"),
        ("**x/*.jsonl", "Invalid pattern"),
        ("x" * 5000, "File name too long."),
        ("a\0b.jsonl", "a file name cannot contain a NUL"),
    ],
)
def test_find_files_says_what_it_did_not_find(data_folder, place, message):
    with pytest.raises(DataError, match=message):
        find_files(place, str(data_folder))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], {"train": ["a", "b"]}),
        (["train", "dev", "x"], {"train": ["train"], "validation": ["dev"], "other": ["x"]}),
        (["my-train-1", "my-test-1"], {"train": ["my-train-1"], "test": ["my-test-1"]}),
        (["contest", "trainer"], {"train": ["contest", "trainer"]}),
        (["valid/train", "train/val"], {"train": ["valid/train"], "validation": ["train/val"]}),
    ],
)
def test_group_by_split_goes_by_words_in_names(tmp_path, names, expected):
    groups = group_by_split([tmp_path / f"{name}.jsonl" for name in names], tmp_path)
    assert {
        split: [str(p.relative_to(tmp_path).with_suffix("")) for p in files] for split, files in groups.items()
    } == (expected)


def _write(folder, **counts):
    for name, count in counts.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(count)))


def test_open_sources_finds_files_under_dataset_path(tmp_path, monkeypatch):
    _write(tmp_path, a=3, b=2)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), train_file="a.jsonl", validation_file="b.jsonl"))
    assert (len(rows_of(opened.train[0])), len(rows_of(opened.validation[0]))) == (3, 2)
    monkeypatch.chdir(tmp_path)
    assert open_sources(DataConfig(train_file="b.jsonl")).train[0].files == ("b.jsonl",)


def test_open_sources_tells_splits_of_a_folder_apart(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path)))
    assert (len(rows_of(opened.train[0])), len(rows_of(opened.validation[0]))) == (3, 2)
    assert opened.unused == (str(tmp_path / "test.jsonl"),)


def test_open_sources_leaves_validation_files_for_a_validation_split(tmp_path):
    _write(tmp_path, train=3, dev=2)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), validation_split=0.5))
    assert opened.validation == ()
    assert opened.unused == (str(tmp_path / "dev.jsonl"),)


def test_open_sources_takes_a_single_file_whatever_its_name(tmp_path):
    _write(tmp_path, test=2)
    assert len(rows_of(open_sources(DataConfig(dataset_path=str(tmp_path / "test.jsonl"))).train[0])) == 2
    with pytest.raises(DataError, match=r"no training file among .*test\.jsonl\. Set train_file to it"):
        open_sources(DataConfig(dataset_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", b""), ("a.jsonl", b" \n\r\n\n"), ("a.json", b" \n"), ("a.json", b"[ ]"), ("a.csv", b"a,b\n")]
    + [("a.csv", b""), ("a.txt", b"\n\n"), ("a.json", b'{"data": []}'), ("a.jsonl.gz", gzip.compress(b"", mtime=0))]
    + [("a.jsonl.zst", b"")],
)
def test_open_sources_refuses_a_file_without_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=r": no rows found\.$"):
        rows_of(open_sources(DataConfig(train_file=str(tmp_path / name))).train[0])


def test_open_sources_reads_a_saved_dataset(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "validation": made.select([1]), "test": made}).save_to_disk(
        str(tmp_path / "several")
    )
    one = open_sources(DataConfig(dataset_name=str(tmp_path / "one")))
    assert [row.record for row in rows_of(one.train[0])] == ROWS
    assert str(rows_of(one.train[0])[1].source) == f"{tmp_path / 'one'}[train]:2"
    several = open_sources(DataConfig(dataset_name=str(tmp_path / "several")))
    assert [row.record for row in rows_of(several.validation[0])] == ROWS[1:]
    assert several.unused == (f"{tmp_path / 'several'}[test]",)


def test_open_sources_reads_a_folder_by_dataset_name(tmp_path):
    _write(tmp_path, train=3, validation=1)
    opened = open_sources(DataConfig(dataset_name=str(tmp_path)))
    assert (len(rows_of(opened.train[0])), len(rows_of(opened.validation[0]))) == (3, 1)


def test_open_sources_says_what_is_wrong_with_a_saved_dataset(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "no_train"))
    with pytest.raises(DataError, match=r"no split 'train'\. Splits: test\."):
        open_sources(DataConfig(dataset_name=str(tmp_path / "no_train")))
    made.select([]).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(DataError):
        rows_of(open_sources(DataConfig(dataset_name=str(tmp_path / "empty"))).train[0])
    for name, text in (("torn", "{"), ("lost", '{"splits": ["train"]}'), ("odd", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_dict.json").write_text(text)
        with pytest.raises(DataError) as caught:
            open_sources(DataConfig(dataset_name=str(tmp_path / name)))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' is not there"),
            r"'x/y': no such folder, and no such dataset on",
        ),
        (ConnectionError("offline"), r"'x/y': no such folder, and not in the cache; HF_HUB_OFFLINE=1 disables"),
        (
            ValueError("BuilderConfig 'b' not found.\nAvailable: ['main']"),
            r"'b': BuilderConfig .*Available: \['main'\]",
        ),
    ],
)
def test_open_sources_says_in_a_line_what_the_hub_said(monkeypatch, error, message):
    def load_dataset(name, configuration, streaming=False):
        assert (name, configuration) == ("x/y", "b")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message) as caught:
        open_sources(DataConfig(dataset_name="x/y", dataset_config_name="b"))
    assert len(str(caught.value).splitlines()) == 1


def test_open_sources_refuses_a_split_without_rows(monkeypatch):
    empty = datasets.Dataset.from_list(ROWS).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, streaming: {"train": empty})
    with pytest.raises(DataError, match=r"x/y\[train\]: no rows found\."):
        rows_of(open_sources(DataConfig(dataset_name="x/y")).train[0])


def test_open_sources_reads_splits_of_the_hub(monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, streaming: {"train": made, "test": made})
    opened = open_sources(DataConfig(dataset_name="x/y"))
    assert ([row.record for row in rows_of(opened.train[0])], opened.unused) == (ROWS, ("x/y[test]",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("twice.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n'),
        ("twice.json", '[{"text": "a", "text": "b"},\n{"text": "c"}]'),
        ("inside.jsonl", '{"text": "x", "more": {"text": 1, "text": 2}}\n{"text": "c"}\n'),
    ],
)
def test_read_file_refuses_a_field_given_twice(tmp_path, name, content):
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


def test_read_file_takes_lists_on_lines_of_their_own_for_bad_rows(tmp_path):
    path = tmp_path / "lists.jsonl"
    path.write_text('[{"text": "a"}]\n[{"text": "b"}]\n{"text": "c"}\n')
    assert [row.problem and row.problem.reason for row in read_rows(path)] == ["not_an_object"] * 2 + [None]


def test_read_file_names_the_row_whose_quote_is_never_closed(tmp_path):
    path = tmp_path / "open.csv"
    path.write_text('text\none\n"two\nthree\n')
    with pytest.raises(DataError, match=r"open\.csv:3: .* a quote opened in this row is never closed"):
        list(read_rows(path))


def test_open_sources_train_file_as_a_folder_leaves_test_files_out(tmp_path):
    for name in ("train", "test", "validation"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name + '"}\n')
    opened = open_sources(DataConfig(train_file=str(tmp_path)))
    assert [row.record["text"] for row in rows_of(opened.train[0])] == ["train"]
    assert [row.record["text"] for row in rows_of(opened.validation[0])] == ["validation"]
    assert opened.unused == (str(tmp_path / "test.jsonl"),)


def _source(path, **settings):
    (source,) = open_sources(DataConfig(datasets=[DatasetSource(path=str(path), **settings)])).train
    return source


def _write_big(folder, name, num_rows):
    """`num_rows` rows of every kind of file; each says its number in its first field."""
    path = folder / name
    records = [{"question": f"{number}?", "answer": "é" * 20 * (number % 5)} for number in range(num_rows)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n\n" for record in records).encode()
    if ".jsonl" in name:
        compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines))
    elif name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    elif name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([["question", "answer"], *(record.values() for record in records)])
    elif name.endswith(".txt"):
        path.write_text("".join(f"{record['question']}\n\n" for record in records))
        return path, [{"text": record["question"]} for record in records]
    elif ".parquet" in name:
        data = _parquet(records)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path, records


BIG_FILES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "lines.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"]
BIG_FILES += ["a.parquet.gz"]


@pytest.mark.parametrize("name", BIG_FILES)
def test_chunks_are_small_and_hold_every_row_in_order(tmp_path, name):
    path, records = _write_big(tmp_path, name, 2000)
    chunks = list(_source(path).chunks())
    assert [row.record for chunk in chunks for row in chunk.rows()] == records
    assert all(0 < chunk.num_rows == len(chunk.rows()) <= MAX_ROWS for chunk in chunks)
    shares = [chunk.share_read for chunk in chunks]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 1
    assert shares[-1] == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("name", BIG_FILES)
@pytest.mark.parametrize("max_rows", [1, 600, 5000])
def test_chunks_stop_at_max_rows(tmp_path, name, max_rows):
    path, records = _write_big(tmp_path, name, 1100)
    source = _source(path, max_rows=max_rows)
    assert [row.record for row in rows_of(source)] == records[:max_rows]
    assert sum(chunk.num_rows for chunk in source.chunks()) == min(max_rows, 1100)


@pytest.mark.parametrize("name", BIG_FILES)
def test_chunks_travel_to_other_processes(tmp_path, name):
    path, _ = _write_big(tmp_path, name, 700)
    for chunk in _source(path).chunks():
        assert pickle.loads(pickle.dumps(chunk)).rows() == chunk.rows()


def test_chunks_keep_lines_that_are_longer_than_a_chunk_whole(tmp_path):
    texts = ["short", "x" * (3 * MAX_BYTES), "short", "y" * MAX_BYTES, "short"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts))
    for name in ("a.jsonl", "a.txt"):
        chunks = list(_source(tmp_path / name).chunks())
        assert [row.record["text"] for chunk in chunks for row in chunk.rows()] == texts
        assert [row.source.line for chunk in chunks for row in chunk.rows()] == [1, 2, 3, 4, 5]
        assert [chunk.num_rows for chunk in chunks] == [1, 1, 1, 1, 1]


def test_chunks_say_from_which_file_they_come(tmp_path):
    _write(tmp_path, a=3, b=600, c=1)
    source = _source(tmp_path)
    assert source.files == tuple(str(tmp_path / f"{name}.jsonl") for name in "abc")
    for chunk in source.chunks():
        assert {row.source.file for row in chunk.rows()} == {source.files[chunk.file_index]}
    assert [(chunk.file_index, chunk.num_rows) for chunk in source.chunks()] == [(0, 3), (1, 512), (1, 88), (2, 1)]


def test_chunks_of_several_files_may_hold_an_empty_one(tmp_path):
    _write(tmp_path, a=1, b=0, c=1)
    assert len(rows_of(_source(tmp_path))) == 2
    _write(tmp_path, a=0, c=0)
    with pytest.raises(DataError, match=r"a\.jsonl, .*b\.jsonl, .*c\.jsonl: no rows found\.$"):
        rows_of(_source(tmp_path))


MEASURED_READING = """
import resource, sys
from sft.configuration.schema import DataConfig
from sft.data.sources.load import open_sources
(source,) = open_sources(DataConfig(train_file=sys.argv[1])).train
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
chunks = source.chunks()
next(chunks).rows()
before = peak()
rows = sum(len(chunk.rows()) for chunk in chunks)
source.digest()
print(rows, peak() - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.txt", "a.parquet"])
def test_memory_is_flat_in_the_number_of_rows(tmp_path, name):
    pytest.importorskip("resource")
    text = "".join(f'{{"text": "{"x" * 1000}{number}"}}\n' for number in range(40_000))
    path = tmp_path / name
    if ".jsonl" in name:
        compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(text.encode()))
    elif name == "a.parquet":
        table = pyarrow.table({"text": text.splitlines()})
        pyarrow.parquet.write_table(table, path, row_group_size=2000)
    else:
        path.write_text(text.replace('"', ""))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED_READING, str(path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    rows, grown_bytes = map(int, done.stdout.split())
    assert rows >= 39_000
    assert grown_bytes < 12e6 < len(text) / 3


def test_digest_follows_content_order_endings_and_max_rows(tmp_path):
    _write(tmp_path, a=3, b=2)
    first = _source(tmp_path).digest()
    assert first == _source(tmp_path).digest()
    assert int(first, 16) >= 0
    digests = {first, _source(tmp_path, max_rows=2).digest(), _source(tmp_path / "a.jsonl").digest()}
    (tmp_path / "b.jsonl").rename(tmp_path / "B.jsonl")  # sorts before a
    digests.add(_source(tmp_path).digest())
    (tmp_path / "B.jsonl").rename(tmp_path / "b.txt")
    digests.add(_source(tmp_path).digest())
    (tmp_path / "b.txt").write_bytes(b"x\n")
    digests.add(_source(tmp_path).digest())
    assert len(digests) == 6


def test_digest_does_not_follow_where_a_file_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder, a=3)
    os.utime(tmp_path / "one" / "a.jsonl", (1, 1))
    assert _source(tmp_path / "one").digest() == _source(tmp_path / "two" / "a.jsonl").digest()


def test_digest_of_a_dataset_follows_its_content(tmp_path):
    def digest(name, **settings):
        entry = DatasetSource(name=str(tmp_path / name), **settings)
        return open_sources(DataConfig(datasets=[entry])).train[0].digest()

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "other"))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert digest("one") == digest("copy")
    assert len({digest("one"), digest("other"), digest("one", max_rows=1)}) == 3


def test_digest_names_a_file_that_has_gone(tmp_path):
    _write(tmp_path, a=1)
    source = _source(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: no such file\.$"):
        source.digest()
    with pytest.raises(DataError, match=r"a\.jsonl: no such file\.$"):
        rows_of(source)


def test_open_sources_opens_several_with_their_settings(tmp_path):
    _write(tmp_path, a=3, b=2, val=1)
    entries = [
        DatasetSource(path=str(tmp_path / "a.jsonl"), format="text", weight=2.0, columns={"text": "x"}, max_rows=2),
        DatasetSource(path=str(tmp_path / "[b]*.jsonl")),
    ]
    opened = open_sources(DataConfig(datasets=entries, validation_file=str(tmp_path / "val.jsonl")))
    first, second = opened.train
    assert (first.name, first.format, first.weight, first.max_rows) == (entries[0].path, "text", 2.0, 2)
    assert first.columns == {"text": "x"}
    assert (second.name, second.format, second.weight, second.max_rows) == (entries[1].path, None, 1.0, None)
    assert [len(rows_of(source)) for source in opened.train] == [2, 2]
    assert [source.files for source in opened.validation] == [(str(tmp_path / "val.jsonl"),)]


def test_open_sources_takes_the_split_that_an_entry_names(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)

    def opened(*splits):
        return open_sources(DataConfig(datasets=[DatasetSource(path=str(tmp_path), split=split) for split in splits]))

    def names(sources):
        return [os.path.basename(file) for source in sources for file in source.files]

    assert names(opened("test").train) == ["test.jsonl"]
    assert names(opened("validation").train) == names(opened("dev").train) == ["dev.jsonl"]
    assert opened("test").validation == ()
    assert (names(opened(None).validation), names(opened("train").validation)) == (["dev.jsonl"], ["dev.jsonl"])
    both = opened("train", "validation")
    assert (names(both.train), both.validation) == (["train.jsonl", "dev.jsonl"], ())
    assert both.unused == (str(tmp_path / "test.jsonl"),)
    assert len(rows_of(_source(tmp_path / "test.jsonl", split="test"))) == 1
    for path, split, kind in ((tmp_path, "odd", "odd"), (tmp_path / "test.jsonl", "train", "training")):
        with pytest.raises(DataError, match=rf"no {kind} file among .*test\.jsonl"):
            _source(path, split=split)


def test_open_sources_takes_the_split_of_a_dataset_that_an_entry_names(tmp_path, monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    asked = []

    def load_dataset(name, configuration, streaming=False, **settings):
        asked.append((name, configuration, settings))
        return made.select([0]) if settings else {"train": made, "validation": made, "test": made.select([1])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    def opened(split):
        return open_sources(DataConfig(datasets=[DatasetSource(name="x/y", config="main", split=split)]))

    assert [row.record for row in rows_of(opened("test").train[0])] == ROWS[1:]
    assert (opened("test").validation, opened("test").unused) == ((), ("x/y[train]", "x/y[validation]"))
    assert [source.files for source in opened(None).validation] == [("x/y[validation]",)]
    (sliced,) = opened("train[:50%]").train
    assert [str(row.source) for row in rows_of(sliced)] == ["x/y[train[:50%]]:1"]
    assert asked[-1] == ("x/y", "main", {"split": "train[:50%]"})
    with pytest.raises(DataError, match=r"x/y: no split 'odd'\. Splits: train, validation, test\."):
        opened("odd")


def test_open_sources_does_not_call_a_validation_file_unused(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), validation_file="dev.jsonl"))
    assert opened.unused == (str(tmp_path / "test.jsonl"),)


def test_open_sources_reads_datasets_in_slices(tmp_path):
    records = [{"answers": [{"text": [str(number)]}], "more": {"x": None}} for number in range(1300)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    (source,) = open_sources(DataConfig(dataset_name=str(tmp_path / "saved"))).train
    assert [row.record for row in rows_of(source)] == records
    assert [chunk.num_rows for chunk in source.chunks()] == [512, 512, 276]
    assert [row.source.line for row in rows_of(source)] == list(range(1, 1301))


def test_read_file_refuses_rows_that_are_nested_too_deeply_to_be_handled(tmp_path):
    lines = [f'{{"text": "{"[{" * 500}", "x": {"[" * depth}{"]" * depth}}}' for depth in (99, 100, 500)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.json").write_text(f"[{', '.join(lines)}]")
    for name in ("a.jsonl", "a.json"):
        problems = [row.problem and row.problem.reason for row in read_rows(tmp_path / name)]
        assert problems == [None, "nested_too_deeply", "nested_too_deeply"]


def test_read_file_takes_a_carriage_return_alone_for_a_line_end_in_csv_only(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'a,b\r1,2\r\r3,"4\r5"\r\n6,7\r')
    rows = read_rows(tmp_path / "a.csv")
    assert [row.record for row in rows] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4\r5"}, {"a": "6", "b": "7"}]
    assert [row.source.line for row in rows] == [2, 4, 6]
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\nthree")
    assert [row.record["text"] for row in read_rows(tmp_path / "a.txt")] == ["one\rtwo", "three"]


def test_read_file_goes_by_the_last_ending(tmp_path):
    (tmp_path / "a.tsv.csv").write_bytes(b"a,b\n1,2\n")
    assert [row.record for row in read_rows(tmp_path / "a.tsv.csv")] == [{"a": "1", "b": "2"}]


def test_read_file_refuses_parquet_with_a_column_twice(tmp_path):
    table = pyarrow.table([pyarrow.array([1]), pyarrow.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: duplicate column name: a, a\."):
        read_rows(tmp_path / "a.parquet")


def test_read_file_counts_bad_bytes_in_json_lines_that_are_named_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n{"a": 3}\n')
    assert [row.problem and row.problem.reason for row in read_rows(tmp_path / "a.json")] == [None, "not_utf8", None]


def test_read_file_refuses_a_field_given_twice_in_a_file_of_one_record(tmp_path):
    (tmp_path / "a.json").write_text('{"text": "a",\n "text": "b"}')
    assert [row.problem.reason for row in read_rows(tmp_path / "a.json")] == ["duplicate_field"]


def test_read_file_finds_a_frame_that_was_cut_off_behind_a_whole_one(tmp_path):
    whole = zstd.compress(JSONL * 2_000)
    path = tmp_path / "a.jsonl.zst"
    for cut in (whole[:-1], whole[: len(whole) // 2], whole[:4]):
        path.write_bytes(whole + cut)
        with pytest.raises(DataError, match=r"cannot be read: the compressed file is truncated\."):
            read_rows(path)
