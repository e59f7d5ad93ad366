"""The sources that the configuration names."""

import gzip
import os
import re

import pytest

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from tests.support import messages
from tests.support.source_files import _write, rows_of, source_of


def test_open_sources_finds_files_under_dataset_path(tmp_path, monkeypatch):
    _write(tmp_path, a=3, b=2)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), train_file="a.jsonl", validation_file="b.jsonl"))
    assert (len(rows_of(opened.train[0])), len(rows_of(opened.validation[0]))) == (3, 2)
    monkeypatch.chdir(tmp_path)
    assert open_sources(DataConfig(train_file="b.jsonl")).train[0].files == ("b.jsonl",)


def test_open_sources_separates_the_splits_of_a_folder(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path)))
    assert (len(rows_of(opened.train[0])), len(rows_of(opened.validation[0]))) == (3, 2)
    assert opened.unused == (str(tmp_path / "test.jsonl"),)


def test_open_sources_leaves_validation_files_for_a_validation_split(tmp_path):
    _write(tmp_path, train=3, dev=2)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), validation_split=0.5))
    assert opened.validation == ()
    assert opened.unused == (str(tmp_path / "dev.jsonl"),)


def test_open_sources_accepts_a_single_file_of_any_name(tmp_path):
    _write(tmp_path, test=2)
    assert len(rows_of(open_sources(DataConfig(dataset_path=str(tmp_path / "test.jsonl"))).train[0])) == 2
    with pytest.raises(
        DataError,
        match=rf"{messages.NO_FILE_AMONG.format(kind='training', files='.*test')}\.jsonl\. {messages.SET_TRAIN_FILE}",
    ):
        open_sources(DataConfig(dataset_path=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", b""), ("a.jsonl", b" \n\r\n\n"), ("a.json", b" \n"), ("a.json", b"[ ]"), ("a.csv", b"a,b\n")]
    + [("a.csv", b""), ("a.txt", b"\n\n"), ("a.json", b'{"data": []}'), ("a.jsonl.gz", gzip.compress(b"", mtime=0))]
    + [("a.jsonl.zst", b"")],
)
def test_open_sources_refuses_a_file_without_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f": {re.escape(messages.NO_ROWS)}$"):
        rows_of(open_sources(DataConfig(train_file=str(tmp_path / name))).train[0])


def test_open_sources_train_file_as_a_folder_leaves_test_files_out(tmp_path):
    for name in ("train", "test", "validation"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "' + name + '"}\n')
    opened = open_sources(DataConfig(train_file=str(tmp_path)))
    assert [row.record["text"] for row in rows_of(opened.train[0])] == ["train"]
    assert [row.record["text"] for row in rows_of(opened.validation[0])] == ["validation"]
    assert opened.unused == (str(tmp_path / "test.jsonl"),)


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


def test_open_sources_reads_the_split_of_an_entry(tmp_path):
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
    assert len(rows_of(source_of(tmp_path / "test.jsonl", split="test"))) == 1
    for path, split, kind in ((tmp_path, "odd", "odd"), (tmp_path / "test.jsonl", "train", "training")):
        with pytest.raises(
            DataError, match=messages.pattern(messages.NO_FILE_AMONG, kind=kind, files=r".*test\.jsonl")
        ):
            source_of(path, split=split)


def test_open_sources_does_not_call_a_validation_file_unused(tmp_path):
    _write(tmp_path, train=3, dev=2, test=1)
    opened = open_sources(DataConfig(dataset_path=str(tmp_path), validation_file="dev.jsonl"))
    assert opened.unused == (str(tmp_path / "test.jsonl"),)
