"""Tokens of rendered texts, with the characters that each token stands for.

Shapes: `T` tokens of a text, `R` texts, `N` tokens of all of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_AT_ONCE = 1 << 21
"""Characters of texts that are tokenized together."""
PIECE = 1 << 16
"""Least number of characters of a piece of a longer text."""

Encoded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens of one text, and the characters `[start, end)` of each: int32, int64 and int64, `[T]` each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenOffsets:
    """The tokens of complete texts, concatenated, `[N]` each."""

    input_ids: np.ndarray
    """int32."""
    starts: np.ndarray
    """int64: each token stands for the characters `[start, end)`, counted through all texts. A token without characters
    (an added begin-of-text token) starts where it ends."""
    ends: np.ndarray
    lengths: np.ndarray
    """int64 `[R]`: number of tokens of each text."""


class OffsetEncoder:
    """Tokenizes texts and locates every token in its text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, is_chat: bool):
        """
        Args:
            tokenizer: A fast tokenizer.
            is_chat: Chat text is complete as rendered, so nothing is added. Plain text gets the special tokens that the
                tokenizer adds (begin-of-text once) and an end-of-text token.
        """
        self._tokenizer = tokenizer
        self._is_chat = is_chat

    @cached_property
    def byte_lengths(self) -> "ByteLengths | None":
        """Locates tokens without asking the tokenizer for offsets; None if it is not a byte-level one.

        Built at first use, since that costs more than tokenizing a hundred rows.
        """
        return ByteLengths.of(self._tokenizer) if self._is_chat or self._added is not None else None

    @cached_property
    def _added(self) -> tuple[bool, bool] | None:
        """Whether the tokenizer adds its begin-of-text and end-of-text tokens to a text; None if it adds others."""
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        found = set()
        for probe in ("a", "B 1"):
            plain = self._tokenizer(probe, add_special_tokens=False)["input_ids"]
            complete = self._tokenizer(probe)["input_ids"]
            begins, ends = complete[:1] == [bos], complete[-1:] == [eos]
            if complete != [bos] * begins + plain + [eos] * ends:
                return None
            found.add((begins, ends))
        return found.pop() if len(found) == 1 else None

    def __call__(self, texts: Sequence[str]) -> TokenOffsets:
        """The tokens of all texts, without truncation."""
        if self.byte_lengths is None:
            return _concatenate(texts, self._encode_with_offsets(texts))
        input_ids, lengths = self.byte_lengths.encode(texts)
        fits = self.byte_lengths.fits(texts, input_ids, lengths)
        if not self._is_chat:
            fits &= ~self._begins_twice(input_ids, lengths)
        if fits.all():
            return self._located(self.byte_lengths, texts, input_ids, lengths)
        ids_of_text = np.split(input_ids, np.cumsum(lengths)[:-1])
        return _concatenate(
            texts,
            [
                self._located_alone(self.byte_lengths, text, ids) if fit else self._encode_with_offsets([text])[0]
                for text, ids, fit in zip(texts, ids_of_text, fits, strict=True)
            ],
        )

    def _begins_twice(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether a text itself begins with two begin-of-text tokens, bool `[R]`."""
        begins = np.cumsum(lengths) - lengths
        is_bos = np.append(input_ids == self._tokenizer.bos_token_id, [False, False])
        return (lengths > 1) & is_bos[begins] & is_bos[begins + 1]

    def _located_alone(self, byte_lengths: "ByteLengths", text: str, input_ids: np.ndarray) -> Encoded:
        tokens = self._located(byte_lengths, [text], input_ids, np.asarray([len(input_ids)]))
        return tokens.input_ids, tokens.starts, tokens.ends

    def _located(
        self, byte_lengths: "ByteLengths", texts: Sequence[str], input_ids: np.ndarray, lengths: np.ndarray
    ) -> TokenOffsets:
        """Tokens whose bytes add up, with their characters; of plain texts with their first and last token."""
        starts, ends = byte_lengths.offsets(texts, input_ids)
        tokens = TokenOffsets(input_ids=input_ids, starts=starts, ends=ends, lengths=lengths)
        return tokens if self._is_chat else self._complete(texts, tokens)

    def _complete(self, texts: Sequence[str], tokens: TokenOffsets) -> TokenOffsets:
        """As `_complete_text` for each text."""
        assert self._added is not None  # otherwise offsets are those of the tokenizer
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        stops = np.cumsum(tokens.lengths)
        # The index after the last token stands for the tokens of an empty text.
        ids = np.append(tokens.input_ids, np.int32(-1))
        is_empty = tokens.lengths == 0
        begins_now = ~is_empty & (ids[stops - tokens.lengths] == bos)
        ends_now = ~is_empty & (ids[stops - 1] == eos)
        add_bos = ~begins_now if self._added[0] else np.zeros(len(texts), dtype=bool)
        add_eos = np.full(len(texts), eos is not None) & (self._added[1] | ~ends_now)
        lengths = tokens.lengths + add_bos + add_eos
        new_stops = np.cumsum(lengths)
        text_lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        text_ends = np.cumsum(text_lengths)
        text_starts = text_ends - text_lengths
        is_old = np.ones(lengths.sum(), dtype=bool)
        columns = []
        places = ((new_stops - lengths)[add_bos], (new_stops - 1)[add_eos])
        for place in places:
            is_old[place] = False
        for old, first, last in (
            (tokens.input_ids, bos, eos),
            (tokens.starts, text_starts[add_bos], text_ends[add_eos]),
            (tokens.ends, text_starts[add_bos], text_ends[add_eos]),
        ):
            new = np.empty(len(is_old), dtype=old.dtype)
            new[is_old] = old
            for place, value in zip(places, (first, last), strict=True):
                if len(place):
                    new[place] = value
            columns.append(new)
        return TokenOffsets(input_ids=columns[0], starts=columns[1], ends=columns[2], lengths=lengths)

    def _encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text, with the offsets that the tokenizer reports."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=not self._is_chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        results = []
        for text, ids, pairs in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            offsets = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
            starts, ends = offsets[:, 0].copy(), offsets[:, 1]
            for index in np.flatnonzero((starts == ends) & (ends > 0)):
                # Tokenizers that trim offsets (such as GPT-NeoX's) report an empty range for a white-space token.
                starts[index] -= text[ends[index] - 1].isspace()
            tokens = (np.asarray(ids, dtype=np.int32), starts, ends)
            results.append(tokens if self._is_chat else _complete_text(self._tokenizer, *tokens, len(text)))
        return results


class ByteLengths:
    """Offsets of the tokens of a byte-level tokenizer, from the number of bytes that each token stands for.

    Such a tokenizer takes every byte of a text once and in order, so the lengths add up to offsets. Asking the
    tokenizer for offsets would make tokenization a third slower.
    """

    def __init__(self, backend: Any, lengths: np.ndarray, normalizes: bool):
        """
        Args:
            backend: The tokenizer of the `tokenizers` library.
            lengths: Number of bytes of each token id, int64.
            normalizes: Whether the tokenizer applies NFC to the text.
        """
        self.backend = backend
        self._lengths = lengths
        self._normalizes = normalizes
        # The tokens that are found before the text is normalized, and those that take no white space around them.
        tokens = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
        names = sorted((token.content for token in tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._cuts = {token.content for token in tokens if not (token.lstrip or token.rstrip or token.single_word)}

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "ByteLengths | None":
        """The byte lengths of a tokenizer; None if it is not a byte-level one."""
        backend = tokenizer.backend_tokenizer
        kinds = {type(part).__name__ for part in (backend.model, backend.decoder)}
        normalizer = type(backend.normalizer).__name__
        if kinds != {"BPE", "ByteLevel"} or normalizer not in ("NoneType", "NFC"):
            return None
        # A saved tokenizer may truncate or pad by itself.
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int64)
        # In the byte-level alphabet each byte is one character.
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        for index, token in backend.get_added_tokens_decoder().items():
            lengths[index] = len(token.content.encode())
        found = cls(backend, lengths, normalizer == "NFC")
        probe = "A b\u00e9\n\n  c <x> 12\u65e5"
        direct = np.asarray(backend.encode(probe, add_special_tokens=False).ids)
        is_same = direct.tolist() == tokenizer(probe, add_special_tokens=False)["input_ids"]
        return found if is_same and found.fits([probe], direct, np.asarray([len(direct)])).all() else None

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all texts, int32 `[N]`, and how many each has, int64 `[R]`.

        The tokenizer needs several hundred bytes for a token, so long texts are tokenized in pieces.
        """
        if sum(map(len, texts)) <= MAX_AT_ONCE:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
            lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(texts))
            return np.fromiter(chain.from_iterable(one.ids for one in encodings), dtype=np.int32), lengths
        parts = [[self._encode_piece(piece) for piece in self._pieces(text)] for text in texts]
        lengths = np.asarray([sum(map(len, ids)) for ids in parts], dtype=np.int64)
        return np.concatenate([np.zeros(0, dtype=np.int32), *chain.from_iterable(parts)]), lengths

    def _encode_piece(self, text: str) -> np.ndarray:
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return np.asarray(encoding.ids, dtype=np.int32)

    def _pieces(self, text: str) -> Iterator[str]:
        """The text in pieces that begin with a special token: the tokenizer cuts it there before anything else."""
        start = 0
        for found in self._special.finditer(text):
            if found.start() - start >= PIECE and found.group() in self._cuts:
                yield text[start : found.start()]
                start = found.start()
        yield text[start:]

    def fits(self, texts: Sequence[str], input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the bytes of a text's tokens add up to those of the text, bool `[R]`.

        Args:
            texts: `R` texts.
            input_ids: Their tokens, `[N]`.
            lengths: Number of tokens of each text, `[R]`.
        """
        bytes_before = np.concatenate([[0], np.cumsum(self._lengths[input_ids])])
        stops = np.cumsum(lengths)
        num_bytes = [len(text) if text.isascii() else self._num_bytes(text) for text in texts]
        return bytes_before[stops] - bytes_before[stops - lengths] == num_bytes

    def offsets(self, texts: Sequence[str], input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The characters `[start, end)` of each token, counted through all texts, int64 `[N]` each.

        The bytes of each text must add up (see `fits`). A token for a part of a character counts
        as that character.
        """
        lengths = self._lengths[input_ids]
        ends = np.cumsum(lengths)
        if all(map(str.isascii, texts)):
            return ends - lengths, ends
        data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
        # Continuation bytes are 10xxxxxx; every other byte begins a character.
        character = np.cumsum((data & 0xC0) != 0x80)
        return character[ends - lengths] - 1, character[ends - 1]

    def _num_bytes(self, text: str) -> int:
        """Number of bytes that tokens can stand for; -1 if the tokenizer would change the characters of the text."""
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return -1
        return len(text.encode())


def _concatenate(texts: Sequence[str], encoded: Sequence[Encoded]) -> TokenOffsets:
    lengths = np.asarray([len(ids) for ids, _, _ in encoded], dtype=np.int64)
    begins = np.repeat(np.cumsum([0, *map(len, texts)])[:-1], lengths)
    none = np.zeros(0, dtype=np.int64)
    return TokenOffsets(
        input_ids=np.concatenate([none.astype(np.int32), *(ids for ids, _, _ in encoded)]),
        starts=np.concatenate([none, *(starts for _, starts, _ in encoded)]) + begins,
        ends=np.concatenate([none, *(ends for _, _, ends in encoded)]) + begins,
        lengths=lengths,
    )


def _complete_text(
    tokenizer: "PreTrainedTokenizerBase", input_ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int
) -> Encoded:
    """Plain text with exactly one begin-of-text token (if the tokenizer adds it) and one end-of-text token.

    Args:
        tokenizer: Knows both tokens.
        input_ids, starts, ends: The tokens of the text and their characters, `[T]`.
        length: Number of characters of the text, where an added end-of-text token is located.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(input_ids) > 1 and bos is not None and input_ids[0] == input_ids[1] == bos:
        input_ids, starts, ends = input_ids[1:], starts[1:], ends[1:]
    if eos is None:
        return input_ids, starts, ends
    if len(input_ids) == 0 or input_ids[-1] != eos:
        return np.append(input_ids, np.int32(eos)), np.append(starts, length), np.append(ends, length)
    if ends[-1] == starts[-1]:  # added by the tokenizer, without characters
        return input_ids, np.append(starts[:-1], length), np.append(ends[:-1], length)
    return input_ids, starts, ends
