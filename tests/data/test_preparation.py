"""One source to rows on disk: prepared once, found again, and stale when something that decides them changes."""

import json
import logging
import os
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import pytest
from tokenizers import AddedToken

from sft.common.data_records import DroppedRow, RowProblem, RowSource
from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import bad_row_lines
from sft.data.preparation import SourcePreparation
from sft.data.sources.chunks import MAX_ROWS
from sft.data.sources.load import open_sources
from tests.support import messages
from tests.support.data_files import TWO_TURNS, answers, entries, mixed_rows, pairs, prepare, write
from tests.support.small_models import build_tokenizer


def test_prepare_of_a_file_with_a_late_error_leaves_nothing(tmp_path, cache, tokenizer):
    rows = json.dumps(pairs(8 * MAX_ROWS))
    (tmp_path / "a.json").write_text(rows[:-20])
    config = DataConfig(
        train_file=str(tmp_path / "a.json"), preprocessing_num_workers=2, data_cache_dir=str(cache), on_bad_rows="skip"
    )
    with pytest.raises(DataError, match=r"a\.json"):
        prepare(config, tokenizer)
    assert entries(cache) == []
    assert active_children() == []


def test_prepare_refuses_a_file_that_changes_while_it_is_read(tmp_path, cache):
    """Rows of the new content under the name of the old one would be found again later."""
    file = Path(write(tmp_path / "a.jsonl", pairs(3)))
    preparation = SourcePreparation(DataConfig(data_cache_dir=str(cache)), build_tokenizer(None))
    (source,) = open_sources(DataConfig(train_file=str(file))).train

    class Writes(logging.Handler):
        """Adds a row when the template's choice is logged, which is after the file was digested."""

        def emit(self, record):
            write(file, pairs(4))

    handler, logger = Writes(), logging.getLogger("sft.data")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(DataError) as caught:
            preparation.prepare("train", source)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert caught.value.problems == (f"{file}: changed while it was being read. Start again when it is complete.",)
    assert entries(cache) == []


def test_prepare_finds_cached_rows(tmp_path, cache, tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="sft.data")
    rows = [*mixed_rows(300), {"question": "What comes after 1?", "answer": "2", "more": 1}]
    file = write(tmp_path / "a.jsonl", rows)
    config = DataConfig(
        train_file=file, data_cache_dir=str(cache), on_bad_rows="skip", validation_split=0.1, max_seq_length=200
    )
    first = prepare(config, tokenizer, show_rows=(1, 3))
    said = caplog.messages
    caplog.clear()
    second = prepare(config, tokenizer, show_rows=(1, 3))
    assert said == [f"Train: {file}, read as question + answer.", "Train: unused columns: id, more, remark."]
    assert caplog.messages == [
        f"Train: {file}, read as question + answer (prepared before).",
        "Train: unused columns: id, more, remark.",
    ]
    assert first.report == second.report
    assert (first.previews, first.sample_prompts) == (second.previews, second.sample_prompts)
    for ours, theirs in ((first.train, second.train), (first.validation, second.validation)):
        assert [row["input_ids"].tolist() for row in ours] == [row["input_ids"].tolist() for row in theirs]
        assert [row["labels"].tolist() for row in ours] == [row["labels"].tolist() for row in theirs]


def test_prepare_detects_a_changed_byte(tmp_path, cache, tokenizer):
    file = Path(write(tmp_path / "a.jsonl", pairs(20)))
    config = DataConfig(train_file=str(file), data_cache_dir=str(cache))
    before, stat = prepare(config, tokenizer), file.stat()
    file.write_bytes(file.read_bytes().replace(b'"a 7"', b'"a 8"'))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare(config, tokenizer)
    assert file.stat().st_size == stat.st_size
    assert answers(tokenizer, before.train)[6:9] == ["a 6", "a 7", "a 8"]
    assert answers(tokenizer, after.train)[6:9] == ["a 6", "a 8", "a 8"]


def set_template(tokenizer):
    tokenizer.chat_template += "{# another #}"


def set_token(tokenizer):
    tokenizer.add_tokens([AddedToken("three")])


def set_special(tokenizer):
    tokenizer.eos_token = "<|endoftext|>"


@pytest.mark.parametrize(
    "change",
    [
        {"max_seq_length": 30},
        {"on_too_long": "drop"},
        {"train_on": "last"},
        {"add_end_token": True},
        {"dataset_columns": {"messages": "conversations"}},
        set_template,
        set_token,
        set_special,
    ],
    ids=lambda change: getattr(change, "__name__", str(change)),
)
def test_prepare_detects_what_changes_the_rows(tmp_path, cache, change):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [TWO_TURNS]), data_cache_dir=str(cache))
    tokenizer = build_tokenizer()
    prepare(config, tokenizer)
    if callable(change):
        change(tokenizer)
        prepare(config, tokenizer)
    else:
        prepare(replace(config, **change), tokenizer)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"on_bad_rows": "skip"},
        {"preprocessing_num_workers": 1},
        {"max_bad_row_share": 0.5},
        {"validation_split": 0.5},
        {"max_leakage_share": 1.0},
    ],
    ids=str,
)
def test_prepare_finds_cached_rows_for_any_use_of_them(tmp_path, cache, tokenizer, change):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", pairs(4)), data_cache_dir=str(cache))
    prepare(config, tokenizer)
    prepare(replace(config, **change), tokenizer)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("change", [{"weight": 2.0}, {}], ids=str)
def test_prepare_finds_cached_rows_of_a_source_for_any_weight(tmp_path, cache, tokenizer, change):
    file = write(tmp_path / "a.jsonl", pairs(4))
    for source in (DatasetSource(path=file), DatasetSource(path=file, **change)):
        prepare(DataConfig(datasets=[source], data_cache_dir=str(cache)), tokenizer)
    assert len(entries(cache)) == 1


def test_prepare_finds_cached_rows_with_a_tokenizer_saved_with_truncation_and_without_a_template(tmp_path, cache):
    """Use changes a tokenizer: the second source must not look different from one run to the next."""
    files = [write(tmp_path / f"{name}.jsonl", pairs(3, first)) for name, first in (("a", 0), ("b", 10))]
    config = DataConfig(datasets=[DatasetSource(path=file) for file in files], data_cache_dir=str(cache))
    for _ in range(2):
        tokenizer = build_tokenizer(None)
        tokenizer.backend_tokenizer.enable_truncation(16)
        tokenizer.backend_tokenizer.enable_padding(length=16)
        prepare(config, tokenizer)
    assert len(entries(cache)) == 2


def test_prepare_of_odd_names_and_values(tmp_path, cache, tokenizer):
    folder = tmp_path / os.fsdecode(b"caf\xe9\xff")
    folder.mkdir()
    rows = ['{"question": "q", "answer": "\\ud800"}', '{"question": {"\\u2028\\n": 1}, "answer": "a"}', *pairs(2)]
    file = write(folder / "line\nend \u2028.jsonl", rows)
    config = DataConfig(train_file=file, data_cache_dir=str(folder / "cache"))
    first, second = prepare(config, tokenizer), prepare(config, tokenizer)
    assert first.report == second.report
    assert first.report.train.rows_dropped == {"not_unicode": 1, "wrong_type": 1}
    assert answers(tokenizer, second.train) == ["a 0", "a 1"]
    assert bad_row_lines(first.report, config)[0] == (f"{file}:1: 'answer' {messages.UNPAIRED_SURROGATE}.")


def test_dropped_rows_are_restored_from_the_cache(tmp_path, cache, tokenizer):
    file = write(tmp_path / "a.jsonl", [*pairs(1), "[]"])
    config = DataConfig(train_file=file, data_cache_dir=str(cache))
    expected = DroppedRow(
        source=RowSource(file=file, line=2),
        problem=RowProblem(reason="not_an_object", message="expected an object with named fields, found a list"),
    )
    for _ in range(2):
        assert prepare(config, tokenizer).report.train.dropped_examples == (expected,)
