"""Rendered text to token ids and labels."""

import pickle

import numpy as np
import pytest
from tokenizers import normalizers, processors

from sft.common.data_records import RenderedText
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTooLong
from tests.support.small_tokenizers import NASTY, TEXT, byte_level, row_tokenizer


def test_row_tokenizer_trains_every_token_of_a_split_character():
    tokenizer = byte_level()
    (row,) = row_tokenizer(tokenizer)([RenderedText(text="a\u6c34b", trained_spans=((1, 2),))]).split()
    assert (row.labels != -100).tolist() == [False, True, True, True, False]
    assert tokenizer.decode(row.labels[1:4]) == "\u6c34"


def test_row_tokenizer_labels_many_rows_like_each_row():
    """Rows of all kinds and what becomes of them: cut, refused, without tokens, with characters of several bytes."""
    choose = np.random.default_rng(11)
    rendered = []
    for text in [*NASTY, *NASTY[::-1], "x" * 40, "y"] * 3:
        begin, end = sorted(choose.integers(0, len(text) + 1, 2).tolist())
        rendered.append(RenderedText(text=text, trained_spans=((begin, end), (end, len(text)))[: choose.integers(3)]))
    for normalizer in (None, normalizers.NFC()):
        for is_chat in (True, False):
            for truncate in (True, False):
                tokenizer = byte_level(normalizer)
                rows = row_tokenizer(tokenizer, is_chat=is_chat, max_seq_length=12, truncate=truncate)
                together = rows(rendered).split()
                alone = [outcome for one in rendered for outcome in rows([one]).split()]
                assert len(together) == len(rendered)
                assert list(map(_as_plain, together)) == list(map(_as_plain, alone))
                kinds = {type(outcome).__name__ for outcome in together}
                assert kinds >= {"TokenizedRow", "RowTooLong"}


def _as_plain(outcome):
    if isinstance(outcome, RowRefused):
        return outcome.problem, getattr(outcome, "full_length", None), getattr(outcome, "loses", None)
    ends = (outcome.full_length, outcome.lost_end, outcome.has_trained_end, outcome.num_supervised)
    return outcome.input_ids.tolist(), outcome.labels.tolist(), *ends


def test_row_tokenizer_counts_the_supervised_tokens_of_each_row():
    tokens = row_tokenizer(byte_level(), max_seq_length=6)(
        [RenderedText(text=TEXT, trained_spans=(span,)) for span in [(0, 3), (4, 8), (0, 1), (2, 10), (8, 9)]]
    )
    assert sorted(tokens.refusals) == [2, 4]
    assert tokens.num_supervised.tolist() == [2, 2, 4]
    assert tokens.num_supervised.tolist() == [
        row.num_supervised for row in tokens.split() if not isinstance(row, RowRefused)
    ]
    assert tokens.lost_end.tolist() == [False, True, True]
    assert (tokens.lengths.tolist(), tokens.full_length.tolist()) == ([6] * 3, [10] * 3)
    assert len(tokens.input_ids) == len(tokens.labels) == 18


def test_row_tokenizer_ignores_truncation_and_padding_of_a_saved_tokenizer():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (row,) = row_tokenizer(tokenizer)([RenderedText(text="12345678", trained_spans=((4, 8),))]).split()
    assert tokenizer.decode(row.input_ids) == "12345678"


def outcome(spans, *, truncate, max_seq_length=6):
    rows = row_tokenizer(byte_level(), max_seq_length=max_seq_length, truncate=truncate)
    (row,) = rows([RenderedText(text=TEXT, trained_spans=spans)]).split()
    return row


@pytest.mark.parametrize(
    ("spans", "labels", "lost_end"),
    [
        (((2, 4),), [None, None, "2", "3", None, None], False),
        (((4, 9),), [None, None, None, None, "4", "5"], True),
        (((1, 2), (8, 9)), [None, "1", None, None, None, None], True),
        (((4, 6),), [None, None, None, None, "4", "5"], False),
        (((5, 10),), [None, None, None, None, None, "5"], True),
    ],
)
def test_row_tokenizer_truncates_and_reports_whether_the_end_is_lost(spans, labels, lost_end):
    row = outcome(spans, truncate=True)
    tokenizer = byte_level()
    assert [None if label == -100 else tokenizer.decode([label]) for label in row.labels] == labels
    assert tokenizer.decode(row.input_ids) == "012345"
    assert (row.full_length, row.was_truncated, row.lost_end) == (10, True, lost_end)
    assert row.input_ids.base is None, "what was cut off must not stay in memory behind the part"


def test_row_tokenizer_refuses_a_row_whose_answer_is_truncated():
    row = outcome(((6, 9),), truncate=True)
    assert isinstance(row, RowTooLong)
    assert (row.problem.reason, row.full_length, row.loses) == ("nothing_left_after_truncation", 10, "answer")
    assert row.problem.message == "its 10 tokens are truncated to max_seq_length 6, before the answer begins"


@pytest.mark.parametrize(
    ("spans", "loses"),
    [
        (((2, 4),), "prompt"),
        (((4, 6),), "prompt"),
        (((4, 9),), "end"),
        (((6, 9),), "answer"),
        (((0, 1), (7, 8)), "answer"),
    ],
)
def test_row_tokenizer_refuses_too_long_rows_with_what_truncation_would_lose(spans, loses):
    row = outcome(spans, truncate=False)
    assert (row.problem.reason, row.loses, row.full_length) == ("too_long", loses, 10)
    assert row.problem.message == "it has 10 tokens, more than max_seq_length 6"


@pytest.mark.parametrize("truncate", [True, False])
def test_row_tokenizer_keeps_a_row_of_exactly_the_limit(truncate):
    row = outcome(((8, 10),), truncate=truncate, max_seq_length=10)
    assert (row.was_truncated, row.lost_end, row.num_supervised) == (False, False, 2)


@pytest.mark.parametrize("spans", [(), ((0, 1),), ((3, 3),)])
def test_row_tokenizer_refuses_a_row_without_a_predicted_token(spans):
    row = outcome(spans, truncate=True)
    assert isinstance(row, RowRefused)
    assert row.problem.reason == "nothing_to_train"


@pytest.mark.parametrize(
    ("text", "span", "end_token_ids", "expected"),
    [
        ("ab<|im_end|>", (1, 12), None, True),
        ("ab<|im_end|>", (1, 2), None, False),
        ("ab<|endoftext|>", (1, 15), None, False),
        ("ab<|endoftext|>", (1, 15), [0, 2], True),
        ("ab<|im_end|>", (1, 12), [], False),
        ("<|im_end|>ab", (10, 12), None, False),
    ],
)
def test_row_tokenizer_finds_a_trained_end(text, span, end_token_ids, expected):
    rows = row_tokenizer(byte_level(), end_token_ids=end_token_ids)
    (row,) = rows([RenderedText(text=text, trained_spans=(span,))]).split()
    assert row.has_trained_end is expected


def test_row_tokenizer_finds_no_trained_end_if_it_is_truncated():
    rows = row_tokenizer(byte_level(), max_seq_length=3)
    (row,) = rows([RenderedText(text="abc<|im_end|>", trained_spans=((1, 13),))]).split()
    assert (row.has_trained_end, row.lost_end) == (False, True)


def test_row_tokenizer_completes_text_with_one_begin_and_one_end():
    tokenizer = byte_level()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    rows = row_tokenizer(tokenizer, is_chat=False)
    texts = ["ab", "<|endoftext|>ab", "ab<|im_end|>"]
    for row in rows([RenderedText(text=text, trained_spans=((0, len(text)),)) for text in texts]).split():
        assert tokenizer.decode(row.input_ids) == "<|endoftext|>ab<|im_end|>"
        assert tokenizer.decode(row.labels[1:]) == "ab<|im_end|>"


def test_row_tokenizer_pickles_too_long_rows():
    row = pickle.loads(pickle.dumps(RowTooLong("too_long", "it has", 10, "end")))
    assert (row.problem.reason, row.problem.message, row.full_length, row.loses) == ("too_long", "it has", 10, "end")
