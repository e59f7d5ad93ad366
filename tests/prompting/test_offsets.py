"""Tokens with their characters: by byte lengths, or by the offsets of the tokenizer."""

import json
import unicodedata
from itertools import chain

import numpy as np
import pytest
from tokenizers import Regex, normalizers, pre_tokenizers, processors

from sft.common.data_records import RenderedText
from sft.prompting.offsets import OffsetEncoder
from tests.support.prompts import build_special_tokenizer
from tests.support.small_tokenizers import (
    FAMILY,
    NASTY,
    by_offsets,
    byte_level,
    metaspace,
    row_tokenizer,
    unigram,
    word_piece,
)


def placed(encoder, *texts):
    """Token ids, starts and ends of each text by `OffsetEncoder`, with characters counted in the text itself."""
    tokens = encoder(texts)
    results, first, before = [], 0, 0
    for text, length in zip(texts, tokens.lengths.tolist(), strict=True):
        own = slice(first, first + length)
        places = [(array[own] - before).tolist() for array in (tokens.starts, tokens.ends)]
        results.append((tokens.input_ids[own].tolist(), *places))
        first, before = first + length, before + len(text)
    assert first == len(tokens.input_ids)
    return results


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["none", "NFC"])
def test_byte_lengths_give_the_offsets_of_the_tokenizer(normalizer, text):
    tokenizer = byte_level(normalizer)
    encoder = OffsetEncoder(tokenizer, is_chat=True)
    assert encoder.byte_lengths is not None, "this tokenizer must go the quick way"
    assert placed(encoder, text) == [by_offsets(tokenizer, text)]


def test_labels_by_byte_lengths_equal_those_by_offsets():
    tokenizer = byte_level()
    text = f"ask: {FAMILY} <both> caf\u00e9\n" + "".join(NASTY[3:8])
    rows = row_tokenizer(tokenizer)
    ids, starts, ends = by_offsets(tokenizer, text)
    for begin in range(0, len(text) - 3, 2):
        span = (begin, begin + 3)
        expected = [
            token if start < span[1] and end > span[0] else -100
            for token, start, end in zip(ids, starts, ends, strict=True)
        ]
        (row,) = rows([RenderedText(text=text, trained_spans=(span,))]).split()
        if set(expected[1:]) == {-100}:
            assert row.problem.reason == "nothing_to_train"
        else:
            assert row.labels.tolist() == expected


def test_byte_lengths_are_not_used_if_they_do_not_add_up():
    encoder = OffsetEncoder(byte_level(normalizers.NFC()), is_chat=True)
    by_bytes = encoder.byte_lengths

    def fits(*texts, of=None):
        ids = [by_bytes.backend.encode(text, add_special_tokens=False).ids for text in of or texts]
        lengths = np.asarray([len(own) for own in ids])
        return by_bytes.fits(texts, np.asarray([*chain(*ids)], dtype=np.int32), lengths).tolist()

    decomposed, composed = "cafe\u0301 x", "caf\u00e9 x"
    assert fits(decomposed, composed, "a <left>", "", "b") == [False, True, False, True, True]
    assert fits(composed, of=[decomposed]) == [True]
    assert fits("ab", "", of=["", "ab"]) == [False, False]
    assert placed(encoder, "") == [([], [], [])]
    assert placed(encoder) == []


def test_byte_lengths_of_random_texts_give_the_offsets_of_the_tokenizer():
    tokenizer = byte_level(normalizers.NFC())
    encoder = OffsetEncoder(tokenizer, is_chat=True)
    pieces = ["a", " ", "\n", "\u0301", "e\u0301", "\u00e9", "\u65e5\u672c", "\U0001f600", "\u200d", "\u2028"]
    pieces += ["<|im_end|>", "<left>", "<both>", "<whole>", "the", " answer", "\u1112\u1161", "\ufeff", "\U0001f1e9"]
    choose = np.random.default_rng(5)
    texts = ["".join(choose.choice(pieces, choose.integers(1, 12))) for _ in range(400)]
    expected = [by_offsets(tokenizer, text) for text in texts]
    assert placed(encoder, *texts) == expected
    ids = [np.asarray(own, dtype=np.int32) for own, _, _ in expected]
    fits = encoder.byte_lengths.fits(texts, np.concatenate(ids), np.asarray([len(own) for own in ids]))
    assert 100 < fits.sum() < 400, "both ways must be taken"
    quick = [number for number in range(400) if fits[number]]
    assert placed(encoder, *(texts[number] for number in quick)) == [expected[number] for number in quick]


@pytest.mark.parametrize(
    "make",
    [
        metaspace,
        word_piece,
        unigram,
        lambda: byte_level(add_prefix_space=True),
        lambda: byte_level(normalizers.Lowercase()),
        lambda: byte_level(normalizers.NFKC()),
    ],
    ids=["metaspace", "word_piece", "unigram", "prefix_space", "lowercase", "NFKC"],
)
@pytest.mark.parametrize("text", NASTY)
def test_offsets_of_other_tokenizers_are_those_that_they_report(make, text):
    tokenizer = make()
    encoder = OffsetEncoder(tokenizer, is_chat=True)
    assert encoder.byte_lengths is None
    assert placed(encoder, text) == [by_offsets(tokenizer, text)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [(metaspace, "answer</s>"), (word_piece, "answer [SEP]"), (unigram, "answer</s>")],
    ids=["metaspace", "word_piece", "unigram"],
)
def test_row_tokenizer_labels_by_offsets(make, expected):
    tokenizer = make()
    text = f"the question the answer{tokenizer.eos_token}"
    begin = text.index("answer")
    (row,) = row_tokenizer(tokenizer)([RenderedText(text=text, trained_spans=((begin, len(text)),))]).split()
    assert tokenizer.decode(row.labels[row.labels != -100]).strip() == expected
    assert row.has_trained_end


def test_byte_lengths_are_not_used_if_the_tokenizer_drops_characters():
    """A byte-level tokenizer whose first step throws text away: the lengths cannot add up."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert OffsetEncoder(tokenizer, is_chat=True).byte_lengths is None


def test_tokenizers_are_of_the_expected_kinds():
    assert not unicodedata.is_normalized("NFC", NASTY[6])
    kinds = [
        json.loads(make().backend_tokenizer.to_str())["model"]["type"] for make in (metaspace, word_piece, unigram)
    ]
    assert kinds == ["BPE", "WordPiece", "Unigram"]


EDGES = ["a", "<s>a", "<s><s>a", "<s><s><s>a", "a</s>", "a</s></s>", "</s>", "<s>", "<s></s>", "é <s>x", " a \n"]


def with_template(single):
    tokenizer = build_special_tokenizer()
    if single is not None:
        ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize("single", [None, "<s> $A", "$A </s>", "<s> $A </s>", "<s> <s> $A"])
@pytest.mark.parametrize("eos", ["</s>", None])
def test_plain_texts_get_the_same_tokens_and_labels_by_byte_lengths(single, eos):
    tokenizer = with_template(single)
    tokenizer.eos_token = eos
    quick, slow = (OffsetEncoder(tokenizer, is_chat=False) for _ in range(2))
    slow.byte_lengths = None  # a cached property
    is_simple = single != "<s> <s> $A" and (eos is not None or single in (None, "<s> $A"))
    assert (quick.byte_lengths is not None) == is_simple
    texts = [*EDGES, *NASTY, "".join(NASTY)]
    for batch in [texts, *([text] for text in texts), []]:
        got, expected = quick(batch), slow(batch)
        np.testing.assert_array_equal(got.input_ids, expected.input_ids)
        np.testing.assert_array_equal(got.lengths, expected.lengths)
        np.testing.assert_array_equal(got.starts < got.ends, expected.starts < expected.ends)
        np.testing.assert_array_equal(got.ends, expected.ends)
        assert (got.input_ids.dtype, got.starts.dtype) == (np.int32, np.int32)


def test_plain_texts_are_not_tokenized_one_by_one(monkeypatch):
    encoder = OffsetEncoder(with_template("<s> $A"), is_chat=False)
    assert encoder.byte_lengths is not None
    calls = []
    monkeypatch.setattr(encoder, "_encode_with_offsets", lambda texts: calls.append(texts))
    assert len(encoder([f"line {number}" for number in range(1000)]).lengths) == 1000
    assert calls == []
