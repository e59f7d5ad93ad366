"""Text to tokens and labels: where each token stands, what a cut takes, and what a person is shown of it."""

import json
import pickle
import unicodedata
from itertools import chain, pairwise

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.common.data_records import RenderedText, Segment
from sft.prompting.messages import RowRefused
from sft.prompting.tokenizing import RowTokenizer, RowTooLong
from tests.support.parts import build_tokenizer

WORDS = ["the answer is four", "What is the question?", "Caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600 end"]
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
NASTY = [
    "",
    " ",
    "\n\n  \t x\r\n",
    "plain ASCII text, 12345 and (brackets)",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e\u3001\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    f"a{FAMILY}b{FAMILY}",
    "e\u0301 a\u0308\u0323 \u1112\u1161\u11ab",
    "NFC keeps the bytes: a\u0308\u0323 \u0958e\u0301e\u0301e\u0301 z",
    "line\u2028separator\u2029and\u0085next\u00a0space",
    "<|im_start|>user\nhi <|im_end|><|im_end|> x<|endoftext|>",
    "keep <left>\t <left> a <both>  b <both><both> <whole>whole<whole>",
    "\ufeffmark \u200f\u202eright to left\u202c \x01\x1f\x7f",
    "\U0001d54f\U00010348\U0010ffff\ue000",
    "\u0130\u017f\u1e9e\ufb01 \u00bd \u2126",
]


def byte_level(normalizer=None, *, trim_offsets=False, add_prefix_space=False):
    """A byte-level BPE of few merges: most characters beyond ASCII are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<whole>", single_word=True),
            AddedToken("\u65e5\u672c", normalized=False),
        ]
    )
    return wrapped(tokenizer)


def wrapped(tokenizer, **special):
    special = special or {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def metaspace():
    """SentencePiece's way: words begin with a mark in the place of a space, bytes stand in for what is unknown."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(WORDS[:2] * 4, trainer)
    return wrapped(tokenizer, eos_token="</s>", pad_token="<unk>")


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return wrapped(tokenizer, eos_token="[SEP]", pad_token="[UNK]")


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS * 4, trainer)
    return wrapped(tokenizer, eos_token="</s>", pad_token="<unk>")


def row_tokenizer(tokenizer, *, is_chat=True, max_seq_length=1000, **options):
    return RowTokenizer(tokenizer, is_chat=is_chat, max_seq_length=max_seq_length, **options)


def placed(rows, *texts):
    """Ids and places of each text, as our code tells them; characters are counted from the text's own beginning."""
    tokens = rows._encode(list(texts))
    results, first, before = [], 0, 0
    for text, length in zip(texts, tokens.lengths.tolist(), strict=True):
        own = slice(first, first + length)
        places = [(array[own] - before).tolist() for array in (tokens.starts, tokens.ends)]
        results.append((tokens.input_ids[own].tolist(), *places))
        first, before = first + length, before + len(text)
    assert first == len(tokens.input_ids)
    return results


def by_offsets(tokenizer, text):
    """Ids and places as the tokenizer itself tells them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]], [
        end for _, end in encoded["offset_mapping"]
    ]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["none", "NFC"])
def test_row_tokenizer_by_bytes_equals_the_offsets(normalizer, text):
    tokenizer = byte_level(normalizer)
    rows = row_tokenizer(tokenizer)
    assert rows._encode.byte_lengths is not None, "this tokenizer must go the quick way"
    assert placed(rows, text) == [by_offsets(tokenizer, text)]


def test_row_tokenizer_by_bytes_labels_like_the_offsets():
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


def test_row_tokenizer_trains_every_token_of_a_split_character():
    tokenizer = byte_level()
    (row,) = row_tokenizer(tokenizer)([RenderedText(text="a\u6c34b", trained_spans=((1, 2),))]).split()
    assert (row.labels != -100).tolist() == [False, True, True, True, False]
    assert tokenizer.decode(row.labels[1:4]) == "\u6c34"


def test_row_tokenizer_by_bytes_does_not_touch_what_does_not_add_up():
    rows = row_tokenizer(byte_level(normalizers.NFC()))
    by_bytes = rows._encode.byte_lengths

    def fits(*texts, of=None):
        ids = [by_bytes.backend.encode(text, add_special_tokens=False).ids for text in of or texts]
        lengths = np.asarray([len(own) for own in ids])
        return by_bytes.fits(texts, np.asarray([*chain(*ids)], dtype=np.int32), lengths).tolist()

    decomposed, composed = "cafe\u0301 x", "caf\u00e9 x"
    assert fits(decomposed, composed, "a <left>", "", "b") == [False, True, False, True, True]
    assert fits(composed, of=[decomposed]) == [True]
    assert fits("ab", "", of=["", "ab"]) == [False, False]
    assert placed(rows, "") == [([], [], [])]
    assert placed(rows) == []


def test_row_tokenizer_by_bytes_of_random_texts_equals_the_offsets():
    tokenizer = byte_level(normalizers.NFC())
    rows = row_tokenizer(tokenizer)
    pieces = ["a", " ", "\n", "\u0301", "e\u0301", "\u00e9", "\u65e5\u672c", "\U0001f600", "\u200d", "\u2028"]
    pieces += ["<|im_end|>", "<left>", "<both>", "<whole>", "the", " answer", "\u1112\u1161", "\ufeff", "\U0001f1e9"]
    choose = np.random.default_rng(5)
    texts = ["".join(choose.choice(pieces, choose.integers(1, 12))) for _ in range(400)]
    expected = [by_offsets(tokenizer, text) for text in texts]
    assert placed(rows, *texts) == expected
    ids = [np.asarray(own, dtype=np.int32) for own, _, _ in expected]
    fits = rows._encode.byte_lengths.fits(texts, np.concatenate(ids), np.asarray([len(own) for own in ids]))
    assert 100 < fits.sum() < 400, "both ways must be taken"
    quick = [number for number in range(400) if fits[number]]
    assert placed(rows, *(texts[number] for number in quick)) == [expected[number] for number in quick]


def test_row_tokenizer_labels_many_rows_as_it_labels_each():
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
def test_row_tokenizer_takes_the_offsets_of_other_tokenizers(make, text):
    tokenizer = make()
    rows = row_tokenizer(tokenizer)
    assert rows._encode.byte_lengths is None
    assert placed(rows, text) == [by_offsets(tokenizer, text)]


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


def test_row_tokenizer_by_bytes_is_refused_where_the_backend_drops_characters():
    """A byte-level tokenizer whose first step throws text away: the lengths cannot add up."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert row_tokenizer(tokenizer)._encode.byte_lengths is None


def test_row_tokenizer_does_not_cut_or_pad_as_a_saved_tokenizer_would():
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (row,) = row_tokenizer(tokenizer)([RenderedText(text="12345678", trained_spans=((4, 8),))]).split()
    assert tokenizer.decode(row.input_ids) == "12345678"


# What a cut takes

TEXT = "0123456789"
"""Ten tokens: digits are no part of a merge here."""


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
def test_row_tokenizer_truncates_and_tells_whether_the_end_is_lost(spans, labels, lost_end):
    row = outcome(spans, truncate=True)
    tokenizer = byte_level()
    assert [None if label == -100 else tokenizer.decode([label]) for label in row.labels] == labels
    assert tokenizer.decode(row.input_ids) == "012345"
    assert (row.full_length, row.was_truncated, row.lost_end) == (10, True, lost_end)
    assert row.input_ids.base is None, "what was cut off must not stay in memory behind the part"


def test_row_tokenizer_refuses_a_row_of_which_the_answer_is_cut_off():
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
def test_row_tokenizer_drops_too_long_rows_and_tells_what_a_cut_would_take(spans, loses):
    row = outcome(spans, truncate=False)
    assert (row.problem.reason, row.loses, row.full_length) == ("too_long", loses, 10)
    assert row.problem.message == "it has 10 tokens, more than max_seq_length 6"


@pytest.mark.parametrize("truncate", [True, False])
def test_row_tokenizer_leaves_a_row_of_just_the_limit_alone(truncate):
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


def test_row_tokenizer_finds_no_trained_end_where_it_is_cut_off():
    rows = row_tokenizer(byte_level(), max_seq_length=3)
    (row,) = rows([RenderedText(text="abc<|im_end|>", trained_spans=((1, 13),))]).split()
    assert (row.has_trained_end, row.lost_end) == (False, True)


# Plain text


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


# What a person is shown


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
def test_segments_end_where_the_row_is_cut(limit, expected):
    assert segments_of(row_tokenizer(byte_level(), max_seq_length=limit), TEXT, (4, 7)) == expected


@pytest.mark.parametrize("make", [byte_level, lambda: byte_level(trim_offsets=True), metaspace, word_piece, unigram])
def test_segments_of_text_are_one_piece_and_the_end(make):
    tokenizer = make()
    rows = row_tokenizer(tokenizer, is_chat=False)
    text = "the answer  is\tfour"
    assert segments_of(rows, text, (0, len(text))) == [(text, True), (tokenizer.eos_token, True)]


def test_segments_of_text_that_brings_its_end_show_it_once():
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
def test_segments_of_text_that_is_cut_have_no_end(limit, expected):
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


def test_segments_say_what_the_labels_say():
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


def test_tokenizers_of_these_tests_are_what_they_claim():
    assert not unicodedata.is_normalized("NFC", NASTY[6])
    kinds = [
        json.loads(make().backend_tokenizer.to_str())["model"]["type"] for make in (metaspace, word_piece, unigram)
    ]
    assert kinds == ["BPE", "WordPiece", "Unigram"]
