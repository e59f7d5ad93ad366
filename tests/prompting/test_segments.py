"""The trained and untrained segments of a row, as a preview shows them."""

from itertools import pairwise

import numpy as np
import pytest
from tokenizers import processors

from sft.common.data_records import RenderedText
from sft.common.shown_rows import Segment
from sft.prompting.messages import RowRefused
from tests.support.small_models import build_tokenizer
from tests.support.small_tokenizers import (
    FAMILY,
    NASTY,
    TEXT,
    by_offsets,
    byte_level,
    metaspace,
    row_tokenizer,
    unigram,
    word_piece,
)


def segments_of(rows, text, *spans):
    return [(piece.text, piece.trained) for piece in rows.segments(RenderedText(text=text, trained_spans=spans))]


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(trim_offsets=True), metaspace, word_piece, unigram])
def test_segments_are_the_trained_spans(make):
    text = "the question : is the answer four ? the end"
    begin = text.index("is the")
    pieces = segments_of(row_tokenizer(make()), text, (begin, begin + len("is the answer")))
    assert "".join(piece for piece, _ in pieces) == text
    assert [(piece.strip(), trained) for piece, trained in pieces] == [
        ("the question :", False),
        ("is the answer", True),
        ("four ? the end", False),
    ]


def test_segments_of_a_chat_are_exact():
    rows = row_tokenizer(byte_level())
    text = f"<|im_start|>user\n{FAMILY}<|im_end|>\n<|im_start|>assistant\ncaf\u00e9 4<|im_end|>\n"
    begin = text.index("caf")
    assert segments_of(rows, text, (begin, len(text) - 1)) == [
        (f"<|im_start|>user\n{FAMILY}<|im_end|>\n<|im_start|>assistant\n", False),
        ("caf\u00e9 4<|im_end|>", True),
        ("\n", False),
    ]
    (row,) = rows([RenderedText(text=text, trained_spans=((begin, len(text) - 1),))]).split()
    assert byte_level().decode(row.labels[row.labels != -100]) == "caf\u00e9 4<|im_end|>"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (10, [("0123", False), ("456", True), ("789", False)]),
        (9, [("0123", False), ("456", True), ("78", False)]),
        (6, [("0123", False), ("45", True)]),
        (3, [("012", False)]),
    ],
)
def test_segments_end_where_the_row_is_truncated(limit, expected):
    assert segments_of(row_tokenizer(byte_level(), max_seq_length=limit), TEXT, (4, 7)) == expected


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(trim_offsets=True), metaspace, word_piece, unigram])
def test_segments_of_text_are_one_piece_and_the_end(make):
    tokenizer = make()
    rows = row_tokenizer(tokenizer, is_chat=False)
    text = "the answer  is\tfour"
    assert segments_of(rows, text, (0, len(text))) == [(text, True), (tokenizer.eos_token, True)]


def test_segments_of_text_with_an_end_token_show_it_once():
    rows = row_tokenizer(byte_level(), is_chat=False)
    text = "four<|im_end|>"
    assert segments_of(rows, text, (0, len(text))) == [("four<|im_end|>", True)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (11, [("0123456789", True), ("<|im_end|>", True)]),
        (10, [("0123456789", True)]),
        (4, [("0123", True)]),
    ],
)
def test_segments_of_truncated_text_have_no_end(limit, expected):
    rows = row_tokenizer(byte_level(), is_chat=False, max_seq_length=limit)
    assert segments_of(rows, TEXT, (0, 10)) == expected
    (row,) = rows([RenderedText(text=TEXT, trained_spans=((0, 10),))]).split()
    assert len(row.input_ids) == min(limit, 11)


def test_segments_of_a_begin_that_the_tokenizer_adds_hold_the_text_alone():
    tokenizer = byte_level()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )
    rows = row_tokenizer(tokenizer, is_chat=False)
    assert segments_of(rows, "ab", (0, 2)) == [("ab", True), ("<|im_end|>", True)]
    (row,) = rows([RenderedText(text="ab", trained_spans=((0, 2),))]).split()
    assert tokenizer.decode(row.labels[1:]) == "ab<|im_end|>"


def test_segments_agree_with_the_labels():
    """Of many cuts and spans of a text that holds everything: trained characters are those of trained tokens."""
    tokenizer = byte_level()
    text = "".join(NASTY[3:8])
    ids, _, ends = by_offsets(tokenizer, text)
    choose = np.random.default_rng(3)
    for _ in range(60):
        limit = int(choose.integers(2, len(ids) + 5))
        begin, end = sorted(choose.integers(0, len(text), 2).tolist())
        rows = row_tokenizer(tokenizer, max_seq_length=limit)
        rendered = RenderedText(text=text, trained_spans=((begin, end),))
        (row,) = rows([rendered]).split()
        if isinstance(row, RowRefused):
            continue
        pieces = rows.segments(rendered)
        kept = max(ends[:limit])
        assert "".join(piece.text for piece in pieces) == text[:kept]
        assert all(a.trained != b.trained for a, b in pairwise(pieces))
        trained = tokenizer.decode(row.labels[row.labels != -100], skip_special_tokens=False)
        shown = "".join(piece.text for piece in pieces if piece.trained)
        assert trained.strip("\ufffd") in shown
        assert text[begin : min(end, kept)] in shown


def test_segments_are_of_our_type():
    (piece,) = row_tokenizer(build_tokenizer()).segments(RenderedText(text="a", trained_spans=()))
    assert piece == Segment(text="a", trained=False)
