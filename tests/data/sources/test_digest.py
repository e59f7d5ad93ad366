"""The digest of a source follows its content."""

import os
import shutil

import datasets
import pytest

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from tests.support import messages
from tests.support.source_files import ROWS, _write, rows_of, source_of


def test_digest_follows_content_order_endings_and_max_rows(tmp_path):
    _write(tmp_path, a=3, b=2)
    first = source_of(tmp_path).digest()
    assert first == source_of(tmp_path).digest()
    assert int(first, 16) >= 0
    digests = {first, source_of(tmp_path, max_rows=2).digest(), source_of(tmp_path / "a.jsonl").digest()}
    (tmp_path / "b.jsonl").rename(tmp_path / "B.jsonl")  # sorts before a
    digests.add(source_of(tmp_path).digest())
    (tmp_path / "B.jsonl").rename(tmp_path / "b.txt")
    digests.add(source_of(tmp_path).digest())
    (tmp_path / "b.txt").write_bytes(b"x\n")
    digests.add(source_of(tmp_path).digest())
    assert len(digests) == 6


def test_digest_does_not_depend_on_the_folder_of_a_file(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder, a=3)
    os.utime(tmp_path / "one" / "a.jsonl", (1, 1))
    assert source_of(tmp_path / "one").digest() == source_of(tmp_path / "two" / "a.jsonl").digest()


def test_digest_of_a_dataset_follows_its_content(tmp_path):
    def digest(name, **settings):
        entry = DatasetSource(name=str(tmp_path / name), **settings)
        return open_sources(DataConfig(datasets=[entry])).train[0].digest()

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(str(tmp_path / "other"))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert digest("one") == digest("copy")
    assert len({digest("one"), digest("other"), digest("one", max_rows=1)}) == 3


def test_digest_reports_a_deleted_file(tmp_path):
    _write(tmp_path, a=1)
    source = source_of(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=rf"a\.jsonl: {messages.pattern(messages.NO_FILE)}$"):
        source.digest()
    with pytest.raises(DataError, match=rf"a\.jsonl: {messages.pattern(messages.NO_FILE)}$"):
        rows_of(source)
