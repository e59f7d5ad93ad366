"""Datasets of the `datasets` library."""

import re

import datasets
import pytest

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.load import open_sources
from tests.support import messages
from tests.support.source_files import ROWS, _write, rows_of


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


def test_open_sources_reports_what_is_wrong_with_a_saved_dataset(tmp_path):
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
def test_open_sources_reports_errors_of_the_hub_in_one_line(monkeypatch, error, message):
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
    with pytest.raises(DataError, match=re.escape(f"x/y[train]: {messages.NO_ROWS}")):
        rows_of(open_sources(DataConfig(dataset_name="x/y")).train[0])


def test_open_sources_reads_splits_of_the_hub(monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, streaming: {"train": made, "test": made})
    opened = open_sources(DataConfig(dataset_name="x/y"))
    assert ([row.record for row in rows_of(opened.train[0])], opened.unused) == (ROWS, ("x/y[test]",))


def test_open_sources_loads_the_dataset_split_of_an_entry(tmp_path, monkeypatch):
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


def test_open_sources_reads_datasets_in_slices(tmp_path):
    records = [{"answers": [{"text": [str(number)]}], "more": {"x": None}} for number in range(1300)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    (source,) = open_sources(DataConfig(dataset_name=str(tmp_path / "saved"))).train
    assert [row.record for row in rows_of(source)] == [{**record, "more": {}} for record in records]
    assert [chunk.num_rows for chunk in source.chunks()] == [512, 512, 276]
    assert [row.source.line for row in rows_of(source)] == list(range(1, 1301))
