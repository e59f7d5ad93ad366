"""Counts of prepared rows: duplicates, leakage, lengths, truncation, notes."""

from dataclasses import replace

import numpy as np
import pytest

from sft.common.data_records import LengthReport
from sft.configuration.schema import DataConfig
from sft.data.counts import BINS, _length_report
from tests.support.data_files import long_rows, pairs, prepare, texts, write


def test_prepare_counts_duplicates_ignoring_case_and_white_space(tmp_path, tokenizer):
    rows = [
        {"question": "What is it?", "answer": "Caf\u00e9"},
        {"question": "other", "answer": "Caf\u00e9"},
        {"question": " what  IS\nit? ", "answer": "CAFE\u0301"},
        {"question": "What is it?", "answer": ""},
        {"question": "What is it?", "answer": "Caf\u00e9."},
        {"question": "OTHER", "answer": "caf\u00e9"},
        {"question": "What is it?", "answer": "Caf\u00e9"},
        {"question": "Caf\u00e9", "answer": "other"},
        {"question": "What is", "answer": "it? Caf\u00e9"},
    ]
    file = write(tmp_path / "a.jsonl", rows)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert report.duplicates == 3
    assert [(str(later), str(first)) for later, first in report.duplicate_examples] == [
        (f"{file}:3", f"{file}:1"),
        (f"{file}:6", f"{file}:2"),
        (f"{file}:7", f"{file}:1"),
    ]


def test_prepare_does_not_take_other_roles_or_tools_for_duplicates(tmp_path, tokenizer):
    def chat(role, tools=None):
        messages = [{"role": role, "content": "hi"}, {"role": "user", "content": "x"}]
        return {"messages": [*messages, {"role": "assistant", "content": "yes"}], "tools": tools}

    tools = [[{"type": "function", "function": {"name": name}}] for name in "fg"]
    rows = [chat("system"), chat("user"), chat("system", tools[0]), chat("system", tools[1]), chat("system", tools[0])]
    file = write(tmp_path / "a.jsonl", rows)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert [(later.line, first.line) for later, first in report.duplicate_examples] == [(5, 3)]


def test_prepare_names_five_duplicates_and_counts_all(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", pairs(3) * 400)
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert (report.rows_used, report.duplicates) == (1200, 1197)
    assert [(later.line, first.line) for later, first in report.duplicate_examples] == [
        (4, 1),
        (5, 2),
        (6, 3),
        (7, 1),
        (8, 2),
    ]


def test_prepare_finds_validation_rows_in_the_training_rows(tmp_path, tokenizer, leaking):
    report = prepare(leaking, tokenizer).report
    assert report.leakage == 2
    assert [(str(leak), str(original)) for leak, original in report.leakage_examples] == [
        (f"{tmp_path}/v.jsonl:3", f"{tmp_path}/b.jsonl:2"),
        (f"{tmp_path}/v.jsonl:9", f"{tmp_path}/a.jsonl:5"),
    ]
    assert (report.train.duplicates, report.validation.duplicates) == (0, 0)


def without_bins(lengths):
    return replace(lengths, bin_edges=(), bin_counts=())


@pytest.mark.parametrize(
    "lengths",
    [
        [7],
        [7] * 50,
        [0, 3],
        list(range(24)),
        list(range(25)),
        [1, 2, 3] * 40 + [100_000],
        list(range(1, 3000, 7)) + [2**20],
    ],
)
def test_histogram_of_lengths_adds_up_to_the_rows(lengths):
    found = _length_report(np.asarray(lengths))
    assert sum(found.bin_counts) == len(lengths)
    assert len(found.bin_edges) == len(found.bin_counts) + 1 <= BINS + 1
    assert list(found.bin_edges) == sorted(set(found.bin_edges))
    assert (found.bin_edges[0], found.bin_edges[-1]) == (min(lengths), max(lengths) + 1)
    for low, high, count in zip(found.bin_edges, found.bin_edges[1:], found.bin_counts, strict=False):
        assert count == sum(low <= length < high for length in lengths)


def test_histogram_of_lengths_grows_its_bins_where_few_rows_are_far_longer():
    found = _length_report(np.asarray(list(range(20, 120)) * 10 + [50_000]))
    assert found.bin_counts[0] < 500
    even = _length_report(np.asarray(range(100)))
    widths = np.diff(even.bin_edges)
    assert widths.max() - widths.min() <= 1


def test_prepare_reports_the_lengths_of_rows(tmp_path, tokenizer):
    """Lengths 11 to 110: p percent of the rows have at most p + 10 tokens."""
    file = texts(tmp_path / "a.txt", np.random.default_rng(0).permutation(100) + 11)
    report = prepare(DataConfig(train_file=file, max_seq_length=200), tokenizer).report.train
    assert without_bins(report.lengths) == LengthReport(median=60, p90=100, p95=105, p99=109, longest=110)
    assert sum(report.lengths.bin_counts) == 100
    assert (report.tokens, report.longest_row, report.rows_too_long) == (6050, 110, 0)
    assert report.supervised_tokens == 5950  # all but the first of each row, which nothing predicts


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "error"])
def test_prepare_reports_lengths_before_truncation(tmp_path, tokenizer, on_too_long):
    file = texts(tmp_path / "a.txt", np.arange(100) + 11)
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long)
    report = prepare(config, tokenizer).report.train
    assert without_bins(report.lengths) == LengthReport(median=60, p90=100, p95=105, p99=109, longest=110)
    assert sum(report.lengths.bin_counts) == 100
    assert (report.rows_too_long, report.rows_that_lose_the_end) == (50, 50)
    assert report.longest_row == 60
    assert (report.rows_used, report.rows_dropped) == (
        (100, {}) if on_too_long == "truncate" else (50, {"too_long": 50})
    )


def test_prepare_reports_no_lengths_if_nothing_was_tokenized(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}])
    report = prepare(DataConfig(train_file=file), tokenizer).report.train
    assert (report.lengths, report.longest_row, report.supervised_share) == (None, 0, 0.0)


@pytest.mark.parametrize(
    ("on_too_long", "used", "dropped"),
    [
        ("truncate", 4, {"nothing_left_after_truncation": 1}),
        ("drop", 1, {"too_long": 4}),
        ("error", 1, {"too_long": 4}),
    ],
)
def test_prepare_counts_what_too_long_rows_lose(tmp_path, tokenizer, on_too_long, used, dropped):
    file = write(tmp_path / "a.jsonl", long_rows(tokenizer))
    config = DataConfig(train_file=file, max_seq_length=60, on_too_long=on_too_long, on_bad_rows="skip")
    report = prepare(config, tokenizer).report.train
    assert (report.rows_read, report.rows_used, report.rows_dropped) == (5, used, dropped)
    assert report.rows_too_long == 4
    lost = (report.rows_that_lose_the_answer, report.rows_that_lose_the_end, report.rows_that_lose_only_prompt)
    assert lost == (1, 2, 1)
    assert report.rows_with_trained_end == (2 if on_too_long == "truncate" else 1)


def test_prepare_counts_what_the_template_omits(tmp_path, tokenizer):
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}

    def chat(thought=None, tools=None):
        answer = {"role": "assistant", "content": "yes"} | ({"reasoning_content": thought} if thought else {})
        return {"messages": [{"role": "user", "content": "hi"}, answer], "tools": tools}

    rows = [chat(), chat("hm"), chat(tools=[tool]), chat("hm", [tool])]
    report = prepare(DataConfig(train_file=write(tmp_path / "a.jsonl", rows)), tokenizer).report.train
    assert (report.rows_used, report.notes) == (4, {"thoughts_left_out": 2, "tools_left_out": 2})
