"""Finding data files, and their splits by their names."""

import glob
from pathlib import Path

import pytest

from sft.common.errors import DataError
from sft.common.files import matching_paths
from sft.data.sources.files import file_format, find_files, group_by_split
from tests.support.paths import ODD_NAMES


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
def test_file_format_is_chosen_by_suffix(tmp_path, name, expected):
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
def test_find_files_accepts_file_folder_and_glob(data_folder, monkeypatch, place, expected):
    assert [str(path.relative_to(data_folder)) for path in find_files(place, str(data_folder))] == expected
    assert find_files(str(data_folder / place)) == find_files(place, str(data_folder))
    monkeypatch.chdir(data_folder)
    assert [str(path) for path in find_files(place)] == expected


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize(
    "place", ["{0}/{0}.jsonl", "{0}", "{0}/*.jsonl", "{0}/[!x]*.jsonl", "*/{0}.jsonl", "{0}/../**/*.jsonl"]
)
def test_find_files_takes_names_that_exist_as_they_are(tmp_path, monkeypatch, name, place):
    path = tmp_path / name / f"{name}.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"{}\n")
    pattern = place.replace("{0}", name)
    if place.startswith("*/") and glob.has_magic(name):
        pattern = "*/*.jsonl"  # after a pattern, a name is a pattern too
    for given, folder in ((str(tmp_path / pattern), None), (pattern, str(tmp_path))):
        assert [each.resolve() for each in find_files(given, folder)] == [path]
        assert any(each.resolve() in (path, path.parent) for each in matching_paths(given, folder))
    monkeypatch.chdir(path.parent)
    assert find_files(path.name) == [Path(path.name)]
    assert find_files("*.jsonl", str(path.parent)) == [path]


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
def test_find_files_reports_what_it_did_not_find(data_folder, place, message):
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
def test_group_by_split_uses_words_in_names(tmp_path, names, expected):
    groups = group_by_split([tmp_path / f"{name}.jsonl" for name in names], tmp_path)
    assert {
        split: [str(p.relative_to(tmp_path).with_suffix("")) for p in files] for split, files in groups.items()
    } == (expected)
