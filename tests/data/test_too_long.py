"""Rows that are too long: split into pieces, or shortened to their latest turns."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from sft.common.errors import ConfigError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.rows import SHORTENED_ROWS, SPLIT_ROWS
from sft.reporting.log_lines import data_lines
from sft.reporting.summary import split_counts
from tests.support.data_files import prepare, texts, write

LENGTHS = [12, 52, 61, 5]


def rows_of(data):
    return [data.train[index] for index in range(len(data.train))]


@pytest.mark.parametrize("overlap", [0, 1, 7])
def test_split_pieces_concatenate_to_the_row_and_train_each_token_once(tmp_path, tokenizer, overlap):
    config = DataConfig(train_file=texts(tmp_path / "a.txt", LENGTHS), max_seq_length=20)
    whole = prepare(replace(config, max_seq_length=100), tokenizer)
    data = prepare(replace(config, on_too_long="split", split_overlap=overlap), tokenizer)
    report, piece = data.report.train, data.train.columns().piece
    rows = rows_of(data)
    new = [row["input_ids"][overlap if number > 1 else 0 :] for row, number in zip(rows, piece, strict=True)]
    assert np.concatenate(new).tolist() == np.concatenate([row["input_ids"] for row in rows_of(whole)]).tolist()
    assert max(len(row["input_ids"]) for row in rows) == 20
    lost = 0 if overlap else np.count_nonzero(piece > 1)
    assert report.supervised_tokens == whole.report.train.supervised_tokens - lost
    assert (report.rows_read, report.rows_used, report.num_dropped, report.rows_split) == (4, 4, 0, 2)
    (source,) = report.sources
    assert (source.rows_read, source.rows_used, source.pieces, source.rows_an_epoch) == (4, 4, report.pieces, len(rows))
    assert (report.pieces, report.duplicates) == (np.count_nonzero(piece), 0)
    assert report.lengths == whole.report.train.lengths
    assert report.rows_with_trained_end == 4
    assert [(change.name, change.rows) for change in report.remarks.changes] == [(SPLIT_ROWS, 2)]
    assert split_counts(report)["pieces"] == report.pieces
    assert any(f"2 rows trained in {report.pieces} pieces" in line for line in data_lines(data.report))


def test_another_overlap_prepares_the_rows_again(tmp_path, tokenizer):
    config = DataConfig(train_file=texts(tmp_path / "a.txt", [30]), max_seq_length=20, on_too_long="split")
    found = [len(prepare(replace(config, split_overlap=overlap), tokenizer).train) for overlap in (0, 15)]
    assert found == [2, 3]


def test_pieces_of_a_row_stay_together_in_one_split(tmp_path, tokenizer):
    config = DataConfig(
        train_file=texts(tmp_path / "a.txt", [30] * 8), max_seq_length=10, on_too_long="split", validation_split=0.5
    )
    data = prepare(config, tokenizer)
    assert (data.report.leakage, len(data.validation), data.report.validation.rows_used) == (0, 12, 4)


def chat(num_exchanges, content="0000"):
    roles = ["user", "assistant"] * num_exchanges
    turns = [{"role": role, "content": content} for role in roles]
    return {"messages": [{"role": "system", "content": "Be brief."}, *turns]}


@pytest.fixture
def chats(tmp_path):
    return write(tmp_path / "chats.jsonl", [chat(1), chat(9), chat(1, "7" * 90), chat(3)])


def test_keep_last_turns_keeps_the_system_turn_and_the_latest_exchanges(chats, tokenizer):
    config = DataConfig(train_file=chats, max_seq_length=70, on_too_long="keep_last_turns")
    data = prepare(config, tokenizer)
    decoded = [tokenizer.decode(row["input_ids"]) for row in rows_of(data)]
    assert [text.count("<|im_start|>user") for text in decoded] == [1, 2, 2]
    assert all(text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user") for text in decoded)
    report = data.report.train
    assert (report.rows_read, report.rows_used, report.rows_shortened) == (4, 3, 2)
    assert report.rows_dropped == {"too_long": 1}
    assert "its last exchange has" in report.dropped_examples[0].problem.message
    assert [(change.name, change.rows) for change in report.remarks.changes] == [(SHORTENED_ROWS, 2)]
    assert report.rows_that_lose_only_prompt + report.rows_that_lose_the_end == 0


def test_split_of_chats_and_last_turns_of_texts_are_refused_in_one_line(tmp_path, chats, tokenizer):
    with pytest.raises(ConfigError, match=r"^on_too_long: split cannot .*chats.jsonl.*Set keep_last_turns.*\.$"):
        prepare(DataConfig(train_file=chats, on_too_long="split"), tokenizer)
    file = texts(tmp_path / "a.txt", [5])
    with pytest.raises(ConfigError, match=r"^on_too_long: keep_last_turns cannot .*text rows.*Set split.*\.$"):
        prepare(DataConfig(train_file=file, on_too_long="keep_last_turns"), tokenizer)


def test_a_streamed_row_holds_its_pieces_in_its_slot_and_resumes_there(tmp_path, tokenizer):
    config = DataConfig(
        datasets=[DatasetSource(path=texts(tmp_path / "a.txt", LENGTHS * 4))],
        max_seq_length=20,
        on_too_long="split",
        split_overlap=3,
        streaming=True,
        shuffle_block_rows=4,
    )
    stored = prepare(replace(config, streaming=False), tokenizer)
    read = prepare(config, tokenizer).stream

    def slots(start, count):
        found = read(start, lambda numbers: numbers < start + count)
        return [[row["input_ids"].tolist() for row in next(found).rows] for _ in range(count)]

    whole = slots(0, 32)
    assert {len(slot) for slot in whole} == {1, 3, 4}
    assert sorted(chain.from_iterable(whole[:16])) == sorted(row["input_ids"].tolist() for row in rows_of(stored))
    assert slots(21, 5) == whole[21:26]
