"""Files to rows: every kind, every way in which a file can be broken."""

import gzip
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from configuration.schema import DataConfig
from sft_errors import DataError
from sources.files import file_format, find_files, group_by_split
from sources.load import load_rows
from sources.readers import read_rows

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "Ünï\u2028日本?", "answer": 'a, "b"\nc'}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = 'question,answer\n1+1?,2\nÜnï\u2028日本?,"a, ""b""\nc"\n'.encode()


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
def test_read_rows_reads_every_kind(tmp_path, name, compression):
    data = CONTENTS[name]
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
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
        ("a.txt", b"\none\n\n two\r\n", [2, 4]),
        ("a.parquet", _parquet([{"a": 1}, {"a": 2}]), [1, 2]),
    ],
)
def test_read_rows_gives_the_line_on_which_a_row_begins(tmp_path, name, data, expected):
    path = tmp_path / name
    path.write_bytes(data)
    assert [row.source.line for row in read_rows(path)] == expected


def test_read_rows_keeps_text_lines_as_they_are(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff  one \r\n\n \t\nt\u2028w\x00o\x0c".encode())
    assert [row.record for row in read_rows(path)] == [{"text": "  one "}, {"text": "t\u2028w\x00o\x0c"}]


@pytest.mark.parametrize("document", [{"messages": [{"role": "user", "content": "x"}]}, {"prompt": [{}], "id": 1}])
def test_read_rows_takes_a_single_json_record_for_a_row(tmp_path, document):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert [row.record for row in read_rows(path)] == [document]


def test_read_rows_reads_every_frame_of_an_archive(tmp_path):
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(b'{"a": 1}\n') + compressor.compress(b'{"a": 2}\n'))
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
        (b'{"\\ud800": 1}', "not_unicode", "a field's name holds half a surrogate pair"),
        (b'{"a": "\x00"}', "invalid_json", "invalid JSON, invalid control character at column 8"),
    ],
)
def test_read_rows_counts_a_bad_line_and_goes_on(tmp_path, line, reason, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = read_rows(path)
    assert (first.record, last.record) == ({"a": 1}, {"a": 2})
    assert (bad.record, bad.problem.reason, bad.source.line) == (None, reason, 2)
    assert bad.problem.message.startswith(message)


def test_read_rows_counts_csv_rows_with_a_wrong_number_of_fields(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1\n1,2\n1,2,3\n")
    rows = list(read_rows(path))
    assert [row.problem and row.problem.message for row in rows] == [
        "1 fields, the header has 2",
        None,
        "3 fields, the header has 2",
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), ":1: UTF-16 text. Save the file as UTF-8."),
        ("a.csv", "a,b\n".encode("utf-16"), ":1: UTF-16 text. Save the file as UTF-8."),
        ("a.csv", "a,b\n1,caf\xe9\n".encode("latin-1"), ":2: not UTF-8 text (byte 0xe9). Save the file as UTF-8."),
        ("a.txt", b"one\n\xff", ":2: not UTF-8 text (byte 0xff). Save the file as UTF-8."),
        ("a.csv", b"a,a\n1,2\n", ":1: a column's name stands twice in the header: a, a."),
        ("a.csv", b"question;answer\n1;2\n", ":1: fields seem to be separated by ';'. Separate them by ','."),
        ("a.tsv", b"question|answer\n1|2\n", ":1: fields seem to be separated by '|'. Separate them by '\\t'."),
        ("a.csv", b'a,b\n1,"x', ":2: not valid CSV: a quote opened in this row is never closed."),
        ("a.json", b'[{"a": 1},\n{"a"', ":2: invalid JSON, expecting ':' delimiter; the rows after it are unknown."),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', ":2: invalid JSON, expecting ',' or ']' in the list of rows."),
        ("a.json", b'[{"a": 1}]\n{"a": 2}', ":2: invalid JSON, something stands behind the list of rows."),
        ("a.json", b"[]x", ":1: invalid JSON, something stands behind the list of rows."),
        ("a.json", b"\nnonsense", ":2: invalid JSON, expecting value."),
        ("a.json", b'{"a": ' + b"1" * 5000 + b"}", ": invalid JSON, Exceeds the limit"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", ":1: invalid JSON, Exceeds the limit"),
        ("a.json", b"[" * 100_000, ":1: invalid JSON, nested too deeply; the rows after it are unknown."),
        ("a.json", b'{"a":' * 100_000, ": invalid JSON, nested too deeply."),
        ("a.jsonl.gz", gzip.compress(JSONL * 50)[:-20], ": cannot be read: Compressed file ended before"),
        ("a.jsonl.gz", JSONL, ": cannot be read: Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(JSONL)[:10] + b"\xff" * 30, ": cannot be read: Error -3 while decompressing"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(JSONL)[:-3], ": cannot be read: the compressed file ends"),
        ("a.jsonl.zst", JSONL, ": cannot be read: zstd decompress"),
        ("a.parquet", JSONL, ": not a Parquet file that can be read: "),
        ("a.parquet", b"", ": not a Parquet file that can be read: "),
        ("a.parquet", CONTENTS["a.parquet"][:-30], ": not a Parquet file that can be read: "),
    ],
)
def test_read_rows_says_what_is_wrong_with_a_file(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}{message}")


def test_read_rows_names_a_file_that_is_not_there(tmp_path):
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
        ("notes.md", "unknown kind of file. Read are .jsonl, .ndjson, .json, .csv, .tsv, .txt, .text, .parquet, also"),
        ("nowhere", "no such file or folder. Read are .jsonl"),
        ("*.parquet", "no data files there. Read are .jsonl"),
        ("**x/*.jsonl", "Invalid pattern"),
        ("x" * 5000, "File name too long."),
        ("a\0b.jsonl", "no file has such a name"),
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


def test_load_rows_finds_files_under_dataset_path(tmp_path, monkeypatch):
    _write(tmp_path, a=3, b=2)
    raw = load_rows(DataConfig(dataset_path=str(tmp_path), train_file="a.jsonl", validation_file="b.jsonl"))
    assert (len(raw.train.rows), len(raw.validation.rows)) == (3, 2)
    monkeypatch.chdir(tmp_path)
    assert load_rows(DataConfig(train_file="b.jsonl")).train.origins == ("b.jsonl",)


def test_load_rows_tells_splits_of_a_folder_apart(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)
    raw = load_rows(DataConfig(dataset_path=str(tmp_path)))
    assert (len(raw.train.rows), len(raw.validation.rows)) == (3, 2)
    assert raw.unused == (str(tmp_path / "test.jsonl"),)


def test_load_rows_leaves_validation_files_for_a_validation_split(tmp_path):
    _write(tmp_path, train=3, dev=2)
    raw = load_rows(DataConfig(dataset_path=str(tmp_path), validation_split=0.5))
    assert raw.validation is None
    assert raw.unused == (str(tmp_path / "dev.jsonl"),)


def test_load_rows_takes_a_single_file_whatever_its_name(tmp_path):
    _write(tmp_path, test=2)
    assert len(load_rows(DataConfig(dataset_path=str(tmp_path / "test.jsonl"))).train.rows) == 2
    with pytest.raises(DataError, match=r"no training file among .*test\.jsonl\. Name it with train_file\."):
        load_rows(DataConfig(dataset_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", b""), ("a.jsonl", b" \n\r\n\n"), ("a.json", b" \n"), ("a.json", b"[ ]"), ("a.csv", b"a,b\n")]
    + [("a.csv", b""), ("a.txt", b"\n\n"), ("a.json", b'{"data": []}'), ("a.jsonl.gz", gzip.compress(b""))]
    + [("a.jsonl.zst", b"")],
)
def test_load_rows_refuses_a_file_without_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=r": no rows in there\.$"):
        load_rows(DataConfig(train_file=str(tmp_path / name)))


def test_load_rows_reads_a_saved_dataset(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made, "validation": made.select([1]), "test": made}).save_to_disk(
        str(tmp_path / "several")
    )
    one = load_rows(DataConfig(dataset_name=str(tmp_path / "one")))
    assert [row.record for row in one.train.rows] == ROWS
    assert str(one.train.rows[1].source) == f"{tmp_path / 'one'}[train]:2"
    several = load_rows(DataConfig(dataset_name=str(tmp_path / "several")))
    assert [row.record for row in several.validation.rows] == ROWS[1:]
    assert several.unused == (f"{tmp_path / 'several'}[test]",)


def test_load_rows_reads_a_folder_by_dataset_name(tmp_path):
    _write(tmp_path, train=3, validation=1)
    raw = load_rows(DataConfig(dataset_name=str(tmp_path)))
    assert (len(raw.train.rows), len(raw.validation.rows)) == (3, 1)


def test_load_rows_says_what_is_wrong_with_a_saved_dataset(tmp_path):
    made = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": made}).save_to_disk(str(tmp_path / "no_train"))
    with pytest.raises(DataError, match=r"no split 'train'; there: test\."):
        load_rows(DataConfig(dataset_name=str(tmp_path / "no_train")))
    made.select([]).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(DataError):
        load_rows(DataConfig(dataset_name=str(tmp_path / "empty")))
    for name, text in (("torn", "{"), ("lost", '{"splits": ["train"]}'), ("odd", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_dict.json").write_text(text)
        with pytest.raises(DataError) as caught:
            load_rows(DataConfig(dataset_name=str(tmp_path / name)))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist"), r"'x/y': not found: Dataset 'x' doesn"),
        (ConnectionError("offline"), r"'x/y': the Hub cannot be reached: offline\."),
        (
            ValueError("BuilderConfig 'b' not found.\nAvailable: ['main']"),
            r"'b': BuilderConfig .*Available: \['main'\]",
        ),
    ],
)
def test_load_rows_says_in_a_line_what_the_hub_said(monkeypatch, error, message):
    def load_dataset(name, configuration):
        assert (name, configuration) == ("x/y", "b")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(DataConfig(dataset_name="x/y", dataset_config_name="b"))
    assert len(str(caught.value).splitlines()) == 1


def test_load_rows_refuses_a_split_without_rows(monkeypatch):
    empty = datasets.Dataset.from_list(ROWS).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: {"train": empty})
    with pytest.raises(DataError, match=r"x/y\[train\]: no rows in there\."):
        load_rows(DataConfig(dataset_name="x/y"))


def test_load_rows_reads_splits_of_the_hub(monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration: {"train": made, "test": made})
    raw = load_rows(DataConfig(dataset_name="x/y"))
    assert ([row.record for row in raw.train.rows], raw.unused) == (ROWS, ("x/y[test]",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("twice.jsonl", '{"text": "a", "text": "b"}\n{"text": "c"}\n'),
        ("twice.json", '[{"text": "a", "text": "b"},\n{"text": "c"}]'),
        ("inside.jsonl", '{"text": "x", "more": {"text": 1, "text": 2}}\n{"text": "c"}\n'),
    ],
)
def test_read_rows_refuses_a_field_given_twice(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    first, second = read_rows(path)
    assert (first.problem.reason, first.problem.message) == (
        "duplicate_field",
        "the field 'text' stands twice in one object",
    )
    assert (second.record, second.source.line) == ({"text": "c"}, 2)


@pytest.mark.parametrize("content", [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\ufeff" + json.dumps(ROWS)])
def test_read_rows_reads_an_array_that_is_named_jsonl(tmp_path, content):
    path = tmp_path / "array.jsonl"
    path.write_text(content, encoding="utf-8")
    assert [row.record for row in read_rows(path)] == ROWS


def test_read_rows_names_the_row_whose_quote_is_never_closed(tmp_path):
    path = tmp_path / "open.csv"
    path.write_text('text\none\n"two\nthree\n')
    with pytest.raises(DataError, match=r"open\.csv:3: .* a quote opened in this row is never closed"):
        list(read_rows(path))


def test_load_rows_train_file_as_a_folder_leaves_test_files_out(tmp_path):
    for name in ("train", "test", "validation"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name + '"}\n')
    raw = load_rows(DataConfig(train_file=str(tmp_path)))
    assert [row.record["text"] for row in raw.train.rows] == ["train"]
    assert [row.record["text"] for row in raw.validation.rows] == ["validation"]
    assert raw.unused == (str(tmp_path / "test.jsonl"),)
