"""Chat renderers and preparers, which are expensive to build, are built once."""

import json

import pytest

from data_handler import prepare_data
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.rows import RowPreparer
from sft.prompting.rendering import ChatRenderer
from tests.support.small_models import build_tokenizer


@pytest.fixture
def built(monkeypatch):
    """How many renderers and preparers were built."""
    counts = {ChatRenderer: 0, RowPreparer: 0}

    def count(kind):
        original = kind.__init__

        def counted(self, *arguments, **options):
            counts[kind] += 1
            original(self, *arguments, **options)

        monkeypatch.setattr(kind, "__init__", counted)

    for kind in counts:
        count(kind)
    return counts


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count):
    return [{"question": f"q{i}", "answer": f"a{i}"} for i in range(count)]


def test_prepare_data_builds_one_renderer_and_one_preparer_for_each_source(tmp_path, built):
    other = [{"instruction": f"i{i}", "output": f"o{i}"} for i in range(4)]
    config = DataConfig(
        datasets=(
            DatasetSource(path=write(tmp_path / "a.jsonl", pairs(6))),
            DatasetSource(path=write(tmp_path / "b.jsonl", other)),
        ),
        data_cache_dir=str(tmp_path / "cache"),
        validation_split=0.2,
    )
    data = prepare_data(config, build_tokenizer(), seed=0, show_rows=[1, 2, 7, 9])
    assert (len(data.previews), len(data.sample_prompts)) == (4, 2)
    assert built == {ChatRenderer: 1, RowPreparer: 2}


def test_prepare_data_builds_nothing_for_cached_rows_that_are_not_shown(tmp_path, built):
    file = write(tmp_path / "a.jsonl", pairs(6))
    config = DataConfig(train_file=file, data_cache_dir=str(tmp_path / "cache"))
    prepare_data(config, build_tokenizer(), seed=0, sample_prompts=["q"])
    prepare_data(config, build_tokenizer(), seed=0, sample_prompts=["q"])
    assert built == {ChatRenderer: 1, RowPreparer: 1}


def test_prepare_data_builds_one_of_each_for_a_stream(tmp_path, built):
    file = write(tmp_path / "a.jsonl", pairs(6))
    data = prepare_data(DataConfig(train_file=file, streaming=True), build_tokenizer(), seed=0, show_rows=[1])
    rows = data.stream(0, lambda slots: slots < 6)
    assert [next(rows).slot for _ in range(6)] == list(range(6))
    assert built == {ChatRenderer: 1, RowPreparer: 1}


def test_prepare_data_builds_no_renderer_for_text(tmp_path, built):
    file = write(tmp_path / "a.txt", ["some words", "other words"])
    prepare_data(DataConfig(train_file=file), build_tokenizer(), seed=0, show_rows=[1])
    assert built == {ChatRenderer: 0, RowPreparer: 1}
