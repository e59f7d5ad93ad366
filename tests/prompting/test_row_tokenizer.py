"""Rows of chat and plain text to tokens, literally."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from sft.common.data_records import RenderedText
from sft.prompting.rendering import ChatRenderer
from tests.support.prompts import (
    CHATML,
    HEADERS,
    INST,
    build_special_tokenizer,
    conversation_with,
    decode_trained,
    tokenize,
)


def _row(tokenizer, text, spans=None, **options):
    return tokenize(tokenizer, RenderedText(text=text, trained_spans=spans or ((0, len(text)),)), **options)


def test_row_tokenizer_gives_literal_ids_and_labels(data_tokenizer):
    h, i = data_tokenizer.convert_tokens_to_ids(["h", "i"])
    assert (h, i) == (85, 86)
    row = _row(data_tokenizer, "hi<|im_end|>hi</s>", ((2, 14),))
    assert row.input_ids.tolist() == [85, 86, 3, 85, 86, 1]
    assert row.labels.tolist() == [-100, -100, 3, 85, 86, -100]
    assert (row.input_ids.dtype, row.labels.dtype, row.num_supervised) == (np.int32, np.int32, 3)


@pytest.mark.parametrize(
    ("adds_bos", "text", "expected"),
    [
        (False, "hi", [85, 86, 1]),
        (False, "hi</s>", [85, 86, 1]),
        (True, "hi", [0, 85, 86, 1]),
        (True, "<s>hi", [0, 85, 86, 1]),
        (True, "<s>hi</s>", [0, 85, 86, 1]),
        (False, "</s>hi", [1, 85, 86, 1]),
    ],
)
def test_row_tokenizer_completes_plain_text_once(adds_bos, text, expected):
    row = _row(build_special_tokenizer(adds_bos=adds_bos), text, is_chat=False)
    assert row.input_ids.tolist() == expected
    assert row.labels.tolist()[1:] == expected[1:]


def test_row_tokenizer_adds_no_begin_of_text_to_a_chat():
    tokenizer = build_special_tokenizer(adds_bos=True, template=HEADERS)
    row = tokenize(tokenizer, ChatRenderer(tokenizer).render(conversation_with("hi", "hi")))
    assert row.input_ids.tolist().count(0) == 1
    assert row.labels.tolist()[-3:] == [85, 86, 6]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_row_tokenizer_trains_every_character_of_an_answer(trim_offsets):
    tokenizer = build_special_tokenizer(trim_offsets=trim_offsets, template=CHATML)
    answer = " \n\n  the answer\n\n\tis 日本 👩‍👩‍👧 \n "
    row = tokenize(tokenizer, ChatRenderer(tokenizer).render(conversation_with("\n hi \n", answer)))
    assert decode_trained(tokenizer, row) == answer + "<|im_end|>"


def test_row_tokenizer_trains_answers_of_a_tokenizer_that_rewrites_text():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], show_progress=False
    )
    tokenizer.train_from_iterator(["the answer is four é hi ▁the▁answer"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = INST
    rendered = ChatRenderer(fast).render(conversation_with("e\u0301 hi", "the e\u0301", "hi", "four"))
    row = tokenize(fast, rendered)
    trained = [token for token in row.labels.tolist() if token != -100]
    assert "".join(fast.convert_ids_to_tokens(trained)) == "▁the▁é</s>▁four</s>"


@pytest.mark.parametrize(
    ("max_seq_length", "expected"),
    [
        (6, ([85, 86, 85, 86, 1], [-100, -100, 85, 86, 1], False, False)),
        (5, ([85, 86, 85, 86, 1], [-100, -100, 85, 86, 1], False, False)),
        (4, ([85, 86, 85, 86], [-100, -100, 85, 86], True, True)),
        (3, ([85, 86, 85], [-100, -100, 85], True, True)),
        (2, "nothing_left_after_truncation"),
    ],
)
def test_row_tokenizer_truncates_at_the_end(data_tokenizer, max_seq_length, expected):
    row = _row(data_tokenizer, "hihi</s>", ((2, 8),), max_seq_length=max_seq_length)
    if isinstance(expected, str):
        assert row.problem.reason == expected
    else:
        assert (row.input_ids.tolist(), row.labels.tolist(), row.was_truncated, row.lost_end) == expected


def test_row_tokenizer_keeps_the_end_of_a_row_truncated_after_its_answer(data_tokenizer):
    row = _row(data_tokenizer, "hihi</s>", ((0, 2),), max_seq_length=3)
    assert (row.was_truncated, row.lost_end) == (True, False)


@pytest.mark.parametrize("spans", [((0, 1),), ((2, 2),)])
def test_row_tokenizer_refuses_a_row_without_a_trained_token(data_tokenizer, spans):
    assert _row(data_tokenizer, "hihi", spans).problem.reason == "nothing_to_train"
