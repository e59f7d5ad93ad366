"""Weights in the loss: the same from every kind of file, stored and streamed; stored only where a row has any."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import asdict

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_handler import prepare_data
from sft.configuration.schema import DataConfig
from sft.data.digest import rows_digest
from sft.data.store import PreparedRows, RowWriter, StoredRows
from tests.data.test_store import columns_of
from tests.support.data_files import prepare, write

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 2.0}]
ROWS = [
    {"messages": TURNS, "weight": 0.5},
    {"messages": [{**turn, "weight": None} for turn in TURNS], "weight": None},
    {"messages": [TURNS[0], {**TURNS[1], "weight": 3}], "weight": 2.0},
    {"messages": TURNS, "weight": 0},
    {"messages": TURNS, "weight": -1},
]


def write_as(kind, folder):
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["messages", "weight"])
            writer.writerows((json.dumps(row["messages"]), row["weight"]) for row in ROWS)
    else:
        turns = [[{"weight": None, **turn} for turn in row["messages"]] for row in ROWS]
        table = pyarrow.table({"messages": turns, "weight": [row["weight"] for row in ROWS]})
        pyarrow.parquet.write_table(table, path)
    return str(path)


def weights_of(rows):
    """The weights of the trained tokens of each row; None of a row without weights."""
    return [
        None if row.get("weights") is None else sorted(set(row["weights"][1:][row["weights"][1:] > 0].tolist()))
        for row in rows
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_prepare_reads_weights_from_every_kind_of_file(tmp_path, tokenizer, kind):
    config = DataConfig(train_file=write_as(kind, tmp_path), on_bad_rows="skip", max_bad_row_share=0.5)
    data = prepare(config, tokenizer)
    assert weights_of(data.train) == [[1], [1], [6]]
    train = data.report.train
    assert train.rows_dropped == {"nothing_to_train": 1, "bad_weight": 1}
    assert train.sources[0].unused_columns == ()
    supervised = train.supervised_tokens // 3
    assert asdict(train.weights) == {
        "rows": 1,
        "tokens": supervised,
        "lowest": 1.0,
        "highest": 6.0,
        "prompt_tokens": 0,
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_streamed_rows_have_the_same_weights(tmp_path, tokenizer, kind):
    config = DataConfig(
        train_file=write_as(kind, tmp_path),
        on_bad_rows="skip",
        streaming=True,
        shuffle_block_rows=1,
        prompt_loss_weight=0.25,
    )
    data = prepare_data(config, tokenizer, seed=0)
    streamed = list(itertools.islice(data.stream(0, lambda slots: np.ones(len(slots), bool)), 5))
    assert [slot.dropped[0].problem.reason for slot in streamed[3:]] == ["nothing_to_train", "bad_weight"]
    for slot, stored in zip(streamed, data.train, strict=False):
        assert slot.rows[0]["weights"].tolist() == stored["weights"].tolist()
    assert weights_of(data.train) == [[0.125, 1], [0.25, 1], [0.5, 6]]
    assert data.report.train.weights.prompt_tokens == data.report.train.tokens - data.report.train.supervised_tokens - 3


def test_rows_without_weights_are_stored_without_a_file_of_weights(tmp_path, tokenizer):
    rows = [{"messages": ROWS[1]["messages"], "weight": weight} for weight in (1, 1.0, None)]
    cache = tmp_path / "cache"
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", rows), data_cache_dir=str(cache))
    data = prepare_data(config, tokenizer, seed=0)
    assert data.report.train.weights is None
    assert sorted(path.name for path in cache.glob("*/*")) == ["report.json", "rows.arrow"]
    assert all(set(row) == {"input_ids", "labels"} for row in data.train)


def test_a_plain_text_has_no_prompt_to_train(tmp_path, tokenizer, caplog):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [{"text": "a b"}]), prompt_loss_weight=0.5)
    with caplog.at_level("INFO"):
        assert prepare(config, tokenizer).report.train.weights is None
    assert "prompt_loss_weight has no effect" in caplog.text


@pytest.mark.parametrize("weighted", [(), (1,), (0, 2), (0, 1, 2)], ids=str)
def test_stored_weights_are_those_of_their_rows(tmp_path, weighted):
    batches = [[[1, 2, 3], [4, 9]], [[5, 6]], [[7, 8, 9, 10], [11, 12]]]
    made = []
    with RowWriter(tmp_path / "rows.arrow") as writer:
        for number, rows in enumerate(batches):
            tokens = np.concatenate(rows).astype(np.int32)
            lengths = np.array([len(row) for row in rows])
            weights = (tokens / 2).astype(np.float32) if number in weighted else None
            labels = np.where(tokens % 2, tokens, np.int32(-100))
            writer.write(tokens, labels, lengths, columns_of(len(rows)), weights)
            made += [None if weights is None else [token / 2 for token in row] for row in rows]
    stored = StoredRows(tmp_path / "rows.arrow")
    rows = PreparedRows([stored, stored], index=np.array([0, 4, 6, 2]))
    assert [None if row.get("weights") is None else row["weights"].tolist() for row in rows] == [
        made[number] for number in (0, 4, 1, 2)
    ]
    columns = rows.weights()
    if not weighted:
        assert columns is None
        return
    expected = [(1, 1, 1.5, 1.5), (0, 1, np.inf, 0.0), (1, 0, 4.5, 4.5), (0, 1, np.inf, 0.0)]
    plain = (0, 0, 1.0, 1.0)
    found = list(zip(columns.num_weighted, columns.num_prompt, columns.lowest, columns.highest, strict=True))
    in_batch = (0, 2, 0, 1)
    assert found == [own if batch in weighted else plain for own, batch in zip(expected, in_batch, strict=True)]


def test_rows_digest_depends_on_weights(tmp_path, tokenizer):
    def digest(weight):
        rows = [{"question": f"{i}?", "answer": "a", "weight": weight if i == 3 else 1} for i in range(700)]
        return rows_digest(prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", rows)), tokenizer).train)

    assert digest(1) != digest(2) != digest(3)


def test_weights_of_token_ids_are_those_of_their_row(tmp_path, tokenizer):
    rows = [
        {"input_ids": [5, 6, 7, 2], "labels": [-100, -100, 7, 2], "weight": 0.5},
        {"input_ids": [5, 6, 7, 2], "labels": [-100, 6, 7, 2]},
    ]
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", rows), prompt_loss_weight=0.25)
    data = prepare(config, tokenizer)
    assert [row["weights"].tolist() for row in data.train] == [[0, 0, 0.5, 0.5], [0, 1, 1, 1]]
    assert data.report.train.weights.prompt_tokens == 0


@pytest.mark.parametrize("overlap", [0, 3])
def test_pieces_of_a_row_have_its_weights_and_count_no_token_twice(tmp_path, tokenizer, overlap):
    file = write(tmp_path / "a.jsonl", [{"text": "a " * 40, "weight": 1.5}, {"text": "b"}])

    def weight(**settings):
        data = prepare(DataConfig(train_file=file, **settings), tokenizer)
        return len(data.train), sum(float(row["weights"][1:].sum()) for row in data.train)

    rows, whole = weight(max_seq_length=1000)
    pieces, split = weight(max_seq_length=24, on_too_long="split", split_overlap=overlap)
    assert rows == 2 < pieces
    # Without overlap the first token of each further piece is not predicted.
    assert split == (whole if overlap else whole - 1.5 * (pieces - 2))


def test_a_shortened_conversation_keeps_the_weights_of_its_turns(tmp_path, tokenizer):
    long = {"role": "assistant", "content": "x " * 100, "weight": 5.0}
    rows = [{"messages": [TURNS[0], long, *TURNS, TURNS[0], {**TURNS[1], "weight": 3.0}]}]
    file = write(tmp_path / "a.jsonl", rows)
    data = prepare(DataConfig(train_file=file, max_seq_length=60, on_too_long="keep_last_turns"), tokenizer)
    assert weights_of(data.train) == [[2, 3]]
