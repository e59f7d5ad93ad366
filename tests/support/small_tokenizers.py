"""Small tokenizers of every kind."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sft.prompting.tokenizing import RowTokenizer

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
    """As SentencePiece does it: words begin with a mark instead of a space, and unknown characters become bytes."""
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


def by_offsets(tokenizer, text):
    """Token ids, starts and ends as the tokenizer reports them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return (
        encoded["input_ids"],
        [start for start, _ in encoded["offset_mapping"]],
        [end for _, end in encoded["offset_mapping"]],
    )


TEXT = "0123456789"
"""Ten tokens: digits are no part of a merge here."""
