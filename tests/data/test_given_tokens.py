"""Rows of token ids: what is trained of them, what is refused, and every kind of file."""

import csv
import json
from dataclasses import replace

import pytest

from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.checks import find_problems
from sft.data.rows import WITHOUT_PADDING
from tests.support.data_files import answers, pairs, prepare, write
from tests.support.small_models import build_tokenizer


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer("one two<|im_end|>")["input_ids"]


def trained(data):
    return [
        [token for token in data.train[index]["labels"].tolist() if token != -100] for index in range(len(data.train))
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, slice(0, None)),
        ({"labels": lambda ids: [-100, -100, *ids[2:]]}, slice(2, None)),
        ({"labels": lambda ids: ids}, slice(0, None)),
        ({"loss_mask": lambda ids: [0] * (len(ids) - 1) + [1]}, slice(-1, None)),
        ({"assistant_masks": lambda ids: [False, False] + [True] * (len(ids) - 2)}, slice(2, None)),
        (
            {
                "completion_mask": lambda ids: [0] + [1] * (len(ids) - 1),
                "labels": lambda ids: [*ids[:-1], -100],
                "attention_mask": lambda ids: [1] * len(ids),
            },
            slice(1, -1),
        ),
    ],
)
def test_labels_and_masks_say_what_is_trained(tmp_path, tokenizer, ids, columns, expected):
    row = {"input_ids": ids, **{name: value(ids) for name, value in columns.items()}}
    data = prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", [row])), tokenizer)
    assert trained(data) == [ids[expected]]
    assert data.train[0]["input_ids"].tolist() == ids
    assert data.report.train.format_name == "input_ids"
    assert not data.report.train.remarks.changes


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"input_ids": [1, 2], "labels": [1]}, "lengths_differ", "'labels' has 1 entries, and 'input_ids' 2"),
        (
            {"input_ids": [1, 2], "labels": [1, 3]},
            "labels_differ",
            "labels[1] is 3; it must be input_ids[1], 2,",
        ),
        ({"input_ids": [1, 2**70]}, "ids_beyond_vocabulary", "input_ids[1] is not an id; the tokenizer has the ids 0"),
        ({"input_ids": [1, 5000]}, "ids_beyond_vocabulary", "input_ids[1] is 5000; the tokenizer has the ids 0 to "),
        ({"input_ids": [1, 2], "loss_mask": [0, 0]}, "nothing_to_train", "it has no supervised token"),
        ({"input_ids": [1, 2], "labels": [1, -100]}, "nothing_to_train", "it has no supervised token"),
        ({"input_ids": [1, 2], "loss_mask": [0, 0.5]}, "wrong_type", "loss_mask[1] must be an integer, found a number"),
        ({"input_ids": [1, 2], "loss_mask": [0, 2]}, "wrong_type", "loss_mask[1] must be 0 or 1, found 2"),
        ({"input_ids": [1, [2]]}, "wrong_type", "input_ids[1] must be an integer, found a list"),
        ({"input_ids": [True, False]}, "wrong_type", "input_ids[0] must be an integer, found true/false"),
        ({"input_ids": "one"}, "wrong_type", "'input_ids' must be a list of integers, found text"),
        ({"input_ids": []}, "empty_text", "'input_ids' is empty"),
        ({"input_ids": None}, "missing_field", "no field 'input_ids'"),
        (
            {"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]},
            "padding_inside",
            "attention_mask[1] is 0 between ones",
        ),
        ({"input_ids": [1, 2], "attention_mask": [0, 0]}, "empty_text", "'attention_mask' has no 1"),
    ],
)
def test_rows_that_cannot_be_used_have_a_reason(tmp_path, tokenizer, ids, row, reason, message):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [row, {"input_ids": ids}]), on_bad_rows="skip")
    report = prepare(config, tokenizer).report.train
    assert report.rows_dropped == {reason: 1}
    assert report.dropped_examples[0].problem.message.startswith(message)


def test_padding_at_the_ends_is_removed_and_counted(tmp_path, tokenizer, ids):
    row = {"input_ids": [0, *ids, 0, 0], "attention_mask": [0] + [1] * len(ids) + [0, 0]}
    data = prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", [row])), tokenizer)
    assert data.train[0]["input_ids"].tolist() == ids
    assert [(change.name, change.rows) for change in data.report.train.remarks.changes] == [(WITHOUT_PADDING, 1)]


def saved_dataset(folder, rows):
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(folder)
    return str(folder)


def parquet(path, rows):
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(path)
    return str(path)


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([[json.dumps(value) for value in row.values()] for row in rows])
    return str(path)


def array(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "written"),
    [("a.jsonl", write), ("a.json", array), ("a.csv", table), ("a.parquet", parquet), ("saved", saved_dataset)],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_ids_are_the_same_from_every_kind_of_file(tmp_path, tokenizer, ids, name, written, streaming):
    file = written(tmp_path / name, [{"input_ids": ids, "labels": [-100, *ids[1:]]}] * 3)
    data = prepare(DataConfig(datasets=[DatasetSource(path=file)], streaming=streaming), tokenizer)
    assert trained(data) == [ids[1:]] * 3
    if streaming:
        slot = next(data.stream(1, lambda slots: slots == 1))
        assert [row["labels"].tolist() for row in slot.rows] == [[-100, *ids[1:]]]


def test_rows_of_ids_and_chats_in_one_run(tmp_path, tokenizer, ids):
    sources = [write(tmp_path / "a.jsonl", [{"input_ids": ids}]), write(tmp_path / "b.jsonl", pairs(1))]
    data = prepare(DataConfig(datasets=[DatasetSource(path=path) for path in sources]), tokenizer)
    assert answers(tokenizer, data.train) == ["one two", "a 0"]
    assert data.is_chat


def test_no_chat_template_is_needed_and_previews_and_prompts_are_decoded(tmp_path, ids):
    tokenizer = build_tokenizer(None)
    file = write(tmp_path / "a.jsonl", [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]}])
    data = prepare(DataConfig(train_file=file), tokenizer, show_rows=[1])
    (preview,) = data.previews
    assert [segment.trained for segment in preview.segments] == [False, True]
    assert "".join(segment.text for segment in preview.segments) == "one two<|im_end|>"
    assert data.sample_prompts[0].text == tokenizer.decode(ids[:3])
    assert tokenizer.chat_template is None
    assert not data.is_chat


def test_end_tokens_of_ids_are_checked_and_added_where_asked_for(tmp_path, tokenizer, ids):
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [{"input_ids": ids[:-1]}]))
    (problem,) = find_problems(prepare(config, tokenizer).report, config)
    assert problem.startswith("the end token is never trained: none of 1 train rows of token ids")
    config = replace(config, add_end_token=True)
    data = prepare(config, tokenizer)
    assert trained(data) == [ids]
    assert not find_problems(data.report, config)


def test_rows_of_ids_are_split_or_truncated_with_their_labels(tmp_path, tokenizer, ids):
    row = {"input_ids": ids * 4, "labels": [-100] * len(ids) + ids * 3}
    config = DataConfig(train_file=write(tmp_path / "a.jsonl", [row]), max_seq_length=len(ids) * 2)
    assert trained(prepare(config, tokenizer)) == [ids]
    data = prepare(replace(config, on_too_long="split"), tokenizer)
    assert trained(data) == [ids, ids * 2]
    data = prepare(replace(config, on_too_long="split", max_seq_length=len(ids)), tokenizer)
    assert (trained(data), data.report.train.untrained_pieces) == ([ids] * 3, 1)
