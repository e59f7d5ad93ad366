"""Data inspected by its first rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.commands.init.data_inspection import inspect_data
from sft.common.errors import DataError
from tests.support import messages
from tests.support.init_data import MODEL, rows_file


def test_inspect_data_counts_rows_that_cannot_be_used():
    good = [{"question": "One?", "answer": "1"}] * 9
    facts = inspect_data(rows_file("rows.jsonl", [*good, {"question": "Two?", "answer": ""}]), None)
    assert (facts.num_rows, facts.num_bad_rows, facts.format_name) == (10, 1, "question_answer")
    assert facts.first_bad_row.startswith("rows.jsonl:10: ")
    assert not facts.are_tokens_counted


def test_inspect_data_reports_whether_tokens_are_counted_with_the_chat_template(tmp_path):
    rows = rows_file("rows.jsonl", [{"question": "One?", "answer": "1"}] * 300)
    counted = inspect_data(rows, str(Path(MODEL, "tokenizer.json")))
    (tmp_path / "tokenizer.json").write_bytes(Path(MODEL, "tokenizer.json").read_bytes())
    alone = inspect_data(rows, str(tmp_path / "tokenizer.json"))
    assert (counted.are_tokens_counted, alone.are_tokens_counted) == (True, False)
    assert counted.max_tokens < alone.max_tokens
    texts = inspect_data(rows_file("texts.jsonl", [{"text": "Some words."}]), str(Path(MODEL, "tokenizer.json")))
    assert texts.are_tokens_counted


def test_inspect_data_maps_columns_by_name():
    facts = inspect_data(rows_file("rows.jsonl", [{"id": 1, "user_query": "One?", "reply": "1"}]), None)
    assert facts.dataset_columns == {"user_query": "prompt", "reply": "completion"}
    with pytest.raises(DataError, match=messages.NO_FORMAT + r".*with dataset_columns\.$"):
        inspect_data(rows_file("odd.jsonl", [{"a": "1", "b": "2"}]), None)


def test_inspect_data_takes_an_unknown_name_for_a_dataset_on_the_hub():
    assert inspect_data("openai/gsm8k", None).key == "dataset_name"
    with pytest.raises(DataError, match=messages.pattern(messages.NO_FILE_OR_FOLDER, path="./openai/gsm8k")):
        inspect_data("./openai/gsm8k", None)
