"""Datasets of the `datasets` library."""

import json
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
    with pytest.raises(DataError, match=messages.pattern(messages.NO_SPLIT, name="train", names="test")):
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
    def load_dataset(name, configuration, revision, streaming=False):
        assert (name, configuration) == ("x/y", "b")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message) as caught:
        open_sources(DataConfig(dataset_name="x/y", dataset_config_name="b"))
    assert len(str(caught.value).splitlines()) == 1


def test_open_sources_refuses_a_split_without_rows(monkeypatch):
    empty = datasets.Dataset.from_list(ROWS).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, revision, streaming: {"train": empty})
    with pytest.raises(DataError, match=re.escape(f"x/y[train]: {messages.NO_ROWS}")):
        rows_of(open_sources(DataConfig(dataset_name="x/y")).train[0])


def test_open_sources_reads_splits_of_the_hub(monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, configuration, revision, streaming: {"train": made, "test": made}
    )
    opened = open_sources(DataConfig(dataset_name="x/y"))
    assert ([row.record for row in rows_of(opened.train[0])], opened.unused) == (ROWS, ("x/y[test]",))


def test_open_sources_loads_the_dataset_split_of_an_entry(tmp_path, monkeypatch):
    made = datasets.Dataset.from_list(ROWS)
    asked = []

    def load_dataset(name, configuration, revision, streaming=False, **settings):
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
    with pytest.raises(
        DataError, match="x/y: " + messages.pattern(messages.NO_SPLIT, name="odd", names="train, validation, test")
    ):
        opened("odd")


def test_open_sources_reads_datasets_in_slices(tmp_path):
    records = [{"answers": [{"text": [str(number)]}], "more": {"x": None}} for number in range(1300)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    (source,) = open_sources(DataConfig(dataset_name=str(tmp_path / "saved"))).train
    assert [row.record for row in rows_of(source)] == [{**record, "more": {}} for record in records]
    assert [chunk.num_rows for chunk in source.chunks()] == [512, 512, 276]
    assert [row.source.line for row in rows_of(source)] == list(range(1, 1301))


def saved(folder, *splits):
    """A saved dataset: without splits a `Dataset`, otherwise a `DatasetDict`. Row i of split i is its only row."""
    made = datasets.Dataset.from_list(ROWS)
    whole = datasets.DatasetDict({split: made.select([i % 2]) for i, split in enumerate(splits)}) if splits else made
    whole.save_to_disk(str(folder))
    return str(folder)


def opened_files(opened):
    return [source.files for source in opened.train], [source.files for source in opened.validation]


@pytest.mark.parametrize("key", ["train_file", "dataset_path", "dataset_name", "path", "name", "relative"])
@pytest.mark.parametrize(
    ("splits", "train", "validation"),
    [
        ((), "train", None),
        (("train",), "train", None),
        (("train", "validation", "test"), "train", "validation"),
        (("training", "dev"), "training", "dev"),
        (("train", "val"), "train", "val"),
        (("train", "test"), "train", None),
    ],
)
def test_open_sources_reads_a_saved_dataset_under_every_key(tmp_path, key, splits, train, validation):
    folder = saved(tmp_path / "made", *splits)
    config = {
        "path": DataConfig(datasets=[DatasetSource(path=folder)]),
        "name": DataConfig(datasets=[DatasetSource(name=folder)]),
        "relative": DataConfig(dataset_path=str(tmp_path), train_file="made"),
    }.get(key) or DataConfig(**{key: folder})
    opened = open_sources(config)
    expected = [(f"{folder}[{validation}]",)] if validation else []
    assert opened_files(opened) == ([(f"{folder}[{train}]",)], expected)
    assert [row.record for row in rows_of(opened.train[0])] == (ROWS[:1] if splits else ROWS)
    if validation:
        assert [row.record for row in rows_of(opened.validation[0])] == ROWS[1:]
    assert opened.unused == tuple(f"{folder}[{split}]" for split in splits if split not in (train, validation))


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ((), "train"),
        (("train",), "train"),
        (("train", "validation", "test"), "validation"),
        (("train", "test"), "test"),
        (("train", "dev"), "dev"),
        (("eval",), "eval"),
        (("held_out",), "held_out"),
    ],
)
def test_validation_file_may_be_a_saved_dataset(tmp_path, splits, expected):
    _write(tmp_path, train=2)
    own = tmp_path / "train.jsonl"
    folder = saved(tmp_path / "made", *splits)
    opened = open_sources(DataConfig(train_file=str(own), validation_file=folder))
    assert opened_files(opened)[1] == [(f"{folder}[{expected}]",)]
    relative = open_sources(DataConfig(dataset_path=str(tmp_path), train_file="train.jsonl", validation_file="made"))
    assert opened_files(relative)[1] == [(f"{folder}[{expected}]",)]


def test_open_sources_names_what_a_saved_dataset_lacks(tmp_path):
    several = saved(tmp_path / "several", "train", "odd", "even")
    with pytest.raises(
        DataError, match="has " + messages.pattern(messages.NO_SPLIT, name="validation", names="train, odd, even")
    ):
        open_sources(DataConfig(train_file=several, validation_file=several))
    with pytest.raises(DataError, match=messages.pattern(messages.NO_SPLIT, name="test", names="train, odd, even")):
        open_sources(DataConfig(datasets=[DatasetSource(path=several, split="test")]))
    with pytest.raises(DataError, match=messages.pattern(messages.SEVERAL_DATASETS, where=".*")):
        open_sources(DataConfig(train_file=str(tmp_path)))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "dataset_dict.json").write_text("{")
    for key in ("train_file", "validation_file"):
        with pytest.raises(DataError, match=rf"^{key} '.*torn'") as caught:
            open_sources(DataConfig(**{"train_file": several, key: str(tmp_path / "torn")}))
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_dict.json", "[]"),
        ("dataset_dict.json", "null"),
        ("dataset_dict.json", '{"splits": null}'),
        ("train/state.json", "[]"),
        ("train/state.json", "{}"),
        ("train/dataset_info.json", "[1]"),
        ("train/dataset_info.json", "\xff"),
    ],
)
def test_open_sources_reports_records_of_another_shape_in_one_line(tmp_path, file, content):
    folder = saved(tmp_path / "made", "train")
    (tmp_path / "made" / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"^train_file '.*made'.*: .+") as caught:
        open_sources(DataConfig(train_file=folder))
    assert len(str(caught.value).splitlines()) == 1


def test_open_sources_does_not_take_a_folder_with_a_state_for_a_saved_dataset(tmp_path):
    _write(tmp_path, train=2)
    own = tmp_path / "train.jsonl"
    (tmp_path / "state.json").write_text(json.dumps(ROWS))
    assert str(own) in open_sources(DataConfig(train_file=str(tmp_path))).train[0].files


@pytest.mark.parametrize("split", [None, "train[:1]"])
def test_open_sources_loads_the_revision_of_an_entry_and_names_it(monkeypatch, split):
    made, asked = datasets.Dataset.from_list(ROWS), []

    def load_dataset(name, configuration, revision, streaming=False, split=None):
        asked.append((name, revision))
        return made if split else {"train": made}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    entries = [DatasetSource(name="x/y", revision="v1", split=split), DatasetSource(name="x/y", split=split)]
    opened = open_sources(DataConfig(datasets=entries))
    assert asked == [("x/y", "v1"), ("x/y", None)]
    assert opened.train[0].files == (f"x/y@v1[{split or 'train'}]",)
    open_sources(DataConfig(dataset_name="x/y", dataset_revision="abc"))
    assert asked[-1] == ("x/y", "abc")
