"""Long texts are tokenized in parts, with the tokens and offsets of the whole text: for every kind of tokenizer."""

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from sft.prompting import closed_places, long_texts, offsets
from sft.prompting.closed_places import ClosedPlaces
from sft.prompting.long_texts import LongTexts
from sft.prompting.offsets import OffsetEncoder
from tests.support.small_tokenizers import FAMILY, NASTY, byte_level, metaspace, unigram, word_piece, wrapped

WORDS = (
    "the quick brown fox jumps over a lazy dog and doesn't stop; it's 1234567 miles (or 3.14 km) away! Caf\u00e9 "
    "na\u00efve \u00dcber stra\u00dfe HTTPServer camelCase snake_case don't I'LL we've for i in range(10): print(x[i]) "
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u0441\u043b\u043e\u0432\u043e \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 "
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629"
).split()
CORPUS = [" ".join(WORDS), " ".join(WORDS[::-1]), "  ".join(WORDS) + "\n\n", "".join(WORDS), "aaaa bbbb  cc" * 9]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    "[\r\n]",
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    "\\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
]


def split(pattern, behavior="isolated", *, invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert=invert)


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPACE_TO_MARK = normalizers.Replace(" ", "\u2581")


def bpe(*steps, normalizer=None, post_processor=None, vocab_size=500, corpus=CORPUS, **options):
    """A BPE whose merges cross words if there are no steps before it."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = normalizer
    if steps:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps)) if len(steps) > 1 else steps[0]
    if post_processor:
        tokenizer.post_processor = post_processor
    is_bytes = any(isinstance(step, pre_tokenizers.ByteLevel) for step in steps)
    specials = [
        "<unk>",
        "<s>",
        "</s>",
        "<|im_start|>",
        *(f"<0x{b:02X}>" for b in range(256) if "byte_fallback" in options),
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size + len(specials),
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if is_bytes else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    tokenizer.add_tokens(
        [
            AddedToken("<left>", lstrip=True),
            AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
            AddedToken("<whole>", single_word=True),
            AddedToken("a a", normalized=True),
        ]
    )
    return wrapped(tokenizer, eos_token="</s>", bos_token="<s>")


def of_unknown(**options):
    return {"unk_token": "<unk>", **options}


KINDS = {
    "gpt2": lambda: bpe(GPT_2),
    "gpt2 nfc": lambda: bpe(GPT_2, normalizer=normalizers.NFC()),
    "gpt2 trimmed": lambda: bpe(GPT_2, post_processor=processors.ByteLevel(trim_offsets=True)),
    "digits": lambda: bpe(pre_tokenizers.Digits(individual_digits=True), GPT_2),
    "llama3": lambda: bpe(split(LLAMA_3), BYTES, ignore_merges=True),
    "qwen": lambda: bpe(split(LLAMA_3), BYTES, normalizer=normalizers.NFC()),
    "o200k": lambda: bpe(split(O200K), BYTES),
    "cl100k": lambda: bpe(split(CL100K, "removed", invert=True), BYTES),
    "deepseek": lambda: bpe(*map(split, DEEPSEEK), pre_tokenizers.Digits(individual_digits=True), BYTES),
    "deepseek3": lambda: bpe(split(r"\p{N}{1,3}"), split("[\u4e00-\u9fa5]+"), split(LLAMA_3), BYTES),
    "nfkc lowercase": lambda: bpe(
        split(LLAMA_3), BYTES, normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "llama2": lambda: bpe(
        normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), SPACE_TO_MARK]),
        **of_unknown(byte_fallback=True, fuse_unk=True),
    ),
    "gemma": lambda: bpe(
        pre_tokenizers.Split(" ", "merged_with_previous"), normalizer=SPACE_TO_MARK, **of_unknown(fuse_unk=True)
    ),
    "no steps": lambda: bpe(**of_unknown()),
    "metaspace first": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), **of_unknown()),
    "metaspace always": lambda: bpe(pre_tokenizers.Metaspace(prepend_scheme="always"), **of_unknown(fuse_unk=True)),
    "metaspace": metaspace,
    "unigram": unigram,
    "small byte level": byte_level,
    "byte level with a space": lambda: byte_level(add_prefix_space=True),
    "words": word_piece,
    "dot": lambda: bpe(split(r".+\n|[^\n]"), BYTES),
    "behind": lambda: bpe(split(r"(?<=a)b| ?\p{L}+"), BYTES),
}
CUT = set(KINDS) - {"byte level with a space", "words", "dot", "behind"}
"""Those whose texts are cut without control tokens too."""


def texts(seed, count, length=2500):
    """Texts of ordinary words and of everything that makes trouble at an edge."""
    rng = random.Random(seed)
    trouble = [
        *NASTY,
        FAMILY * 9,
        "a" * 150,
        " " * 150,
        "\n" * 150,
        " \n" * 80,
        "\u0301" * 90,
        "e\u0301" * 60,
        "1" * 100,
        "!" * 100,
        "\u4f60\u597d" * 50 + "\uff0c",
        "aGVsbG8gd29ybGQ/+" * 8,
        "<|im_start|>",
        "<s>",
        "</s>",
        "<lef",
        "a a",
        "\u1112\u1161\u11ab" * 9,
        "\u2581" * 5,
        "\U0001f1e9\U0001f1ea" * 9,
        "\u0600 x",
        "\r\n" * 9,
        "\u3000\u3000",
        "'s'S'll",
        "DON'T",
    ]
    for number in range(count):
        parts = []
        while sum(map(len, parts)) < length:
            is_word = rng.random() < (0.995, 0.9, 0.5)[number % 3]
            part = rng.choice(WORDS if is_word else trouble)
            parts.append(part + rng.choice(["", " ", " ", " ", " ", "\n", "  "]))
        yield "".join(parts)


@pytest.fixture
def in_small_parts(monkeypatch):
    """Parts of a few hundred characters."""
    monkeypatch.setattr(offsets, "LONG", 50)
    monkeypatch.setattr(long_texts, "PART", 300)
    monkeypatch.setattr(closed_places, "_MIN_WINDOW", 96)
    monkeypatch.setattr(closed_places, "_SEARCHED", 64)
    monkeypatch.setattr(long_texts, "_COMPARED", 24)


def encoded(encoder, text):
    tokens = encoder([text])
    assert tokens.lengths.tolist() == [len(tokens.input_ids)]
    return [values.tolist() for values in (tokens.input_ids, tokens.starts, tokens.ends)]


def check_parts(kind, monkeypatch, seed, count):
    """Tokenize texts in parts and whole; returns the number of parts of each."""
    tokenizer = KINDS[kind]()
    num_parts = 0
    join = LongTexts._in_parts

    def joined(self, text, encode, size):
        def counted(part):
            nonlocal num_parts
            num_parts += 1
            return encode(part)

        return join(self, text, counted, size)

    monkeypatch.setattr(LongTexts, "_in_parts", joined)
    for is_chat in (True, False):
        encoder = OffsetEncoder(tokenizer, is_chat=is_chat)
        for text in texts(seed, count):
            got = encoded(encoder, text)
            with monkeypatch.context() as whole:
                whole.setattr(offsets, "LONG", 10**9)
                whole.setattr(offsets, "AT_ONCE", 10**9)
                assert got == encoded(encoder, text)
    return num_parts / (2 * count)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole_text(kind, in_small_parts, monkeypatch):
    assert check_parts(kind, monkeypatch, seed=7, count=3) >= (3 if kind in CUT else 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_the_tokens_of_the_whole_text_of_many(kind, in_small_parts, monkeypatch):
    assert check_parts(kind, monkeypatch, seed=8, count=15) >= (3 if kind in CUT else 1)


@pytest.mark.parametrize("length", range(100, 900, 200))
@pytest.mark.parametrize(("pattern", "word"), [("x[a-z]*!|x|[a-z]+", "ab"), ("x[a-z ]*!|x|[a-z]+| ", "ab ")])
def test_a_far_end_that_changes_only_a_far_beginning_is_seen(in_small_parts, length, pattern, word):
    """The tokens around a place in the middle do not depend on the end, so comparing them would not be enough."""
    tokenizer = bpe(split(pattern), BYTES, corpus=["xa! xac! xad!", "ab"])
    text = "cd ef " * 60 + "x" + word * length + "! " + "cd ef " * 60
    got = encoded(OffsetEncoder(tokenizer, is_chat=True), text)
    assert got[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "xa" in tokenizer.convert_ids_to_tokens(got[0])


def test_a_text_without_closed_places_is_tokenized_whole(in_small_parts):
    for kind in ("gpt2", "llama3", "llama2", "unigram"):
        tokenizer = KINDS[kind]()
        places = ClosedPlaces(tokenizer.backend_tokenizer)
        for text in ("\u0438" * 3000, "\u0301" * 3000, " " * 3000, FAMILY * 400):
            assert places.find(text, 300) == []
            assert encoded(OffsetEncoder(tokenizer, is_chat=True), text)


def test_a_place_is_not_closed_if_a_pattern_may_look_beyond_the_window():
    """The split of white space depends on how it ends: `\\s*[\\r\\n]+` takes all of it up to the last line end."""
    places = ClosedPlaces(KINDS["llama3"]().backend_tokenizer)
    word = "word and " * 200
    assert places.find(word, 700)
    near, far = (word[:899] + " " * count + "x" + word for count in (20, 600))
    assert places._is_closed(near, 895) is not None or places._is_closed(near, 894)
    assert all(places._is_closed(far, place) is None for place in range(880, 900))
    # The same to the left: an attempt that began before the run could still be looking.
    assert places.find(near, 920)[0] < 940
    assert all(places._is_closed(far, place) is None for place in range(1500, 1518))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("cab|[a-c]| ", "ca|b"),  # an edge, if the search begins at the `a` only
        ("ca|ab|[bc]| ", "ca|b"),  # an edge, unless the search begins at the `a`
        ("abc|bcd|[a-d]| ", "ab|cd"),  # no edge, but the match ends where the search decides
        (r"\p{N}{1,3}| ?\p{L}+", "111|111"),
    ],
)
def test_a_place_is_not_closed_if_it_matters_where_the_search_begins(pattern, text):
    places = ClosedPlaces(bpe(split(pattern), BYTES).backend_tokenizer)
    filler, (left, right) = "b " * 400, text.split("|")
    assert places._is_closed(filler + filler, len(filler) - 1) is not None
    assert places._is_closed(filler + left + right + " " + filler, len(filler + left)) is None


@pytest.mark.parametrize("token", ["a a", "<left>", "<both>", "<whole>"])
def test_no_place_near_an_added_token_is_closed(token):
    places = ClosedPlaces(KINDS["gpt2"]().backend_tokenizer)
    filler = "word and " * 100
    assert places._is_closed(filler + filler, len(filler) - 1)
    text = f"{filler}{token} {filler}"
    assert all(places._is_closed(text, len(filler) + offset) is None for offset in range(-10, 20))


@pytest.mark.parametrize(
    "pattern",
    [r"(ab)+", r"(?<=a)b", r"a\b", "(?i)a", "^a", r"(a|b)\1", r"(?:a?){2}", r"\X", "[[a-z]&&[^b]]+", r"a\K", "(?#x)a"],
)
def test_a_pattern_that_is_not_understood_leaves_control_tokens_only(pattern):
    tokenizer = bpe(split(pattern), BYTES).backend_tokenizer
    text = "some words and " * 200
    assert ClosedPlaces(tokenizer).find(text, 700) == []
    assert ClosedPlaces(tokenizer).find(text[:710] + "<|im_start|>" + text, 700) == [710]


def test_parts_that_disagree_are_not_joined(in_small_parts, monkeypatch):
    """If every place were held for closed, the comparison of the tokens alone would have to refuse the wrong ones."""
    tokenizer = KINDS["llama3"]()
    monkeypatch.setattr(ClosedPlaces, "_is_closed", lambda self, text, place: False)
    monkeypatch.setattr(closed_places, "_begins_alone", lambda character: True)
    for text in ("1" * 3001, "a" * 2999, "e\u0301" * 2000):
        got = encoded(OffsetEncoder(tokenizer, is_chat=True), text)
        assert got[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
