"""Characters of the tokens of byte-level tokenizers, by the number of bytes that each token stands for.

Shapes: `R` texts, `N` tokens of all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.prompting.long_texts import Encoded, position_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class BytesDoNotFit(Exception):
    """The bytes of the tokens of a text do not add up to those of the text."""


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
        """The tokens of all texts, int32 `[N]`, and how many each has, int64 `[R]`."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(texts))
        return np.fromiter(chain.from_iterable(one.ids for one in encodings), dtype=np.int32), lengths

    def encode_located(self, text: str) -> Encoded:
        """The tokens of a text and the characters of each.

        Raises:
            BytesDoNotFit: If they do not add up.
        """
        input_ids, lengths = self.encode([text])
        if not self.fits([text], input_ids, lengths).all():
            raise BytesDoNotFit
        return input_ids, *self.offsets([text], input_ids)

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
        """The characters `[start, end)` of each token, counted through all texts, `[N]` each.

        The bytes of each text must add up (see `fits`). A token for a part of a character counts
        as that character.
        """
        lengths = self._lengths[input_ids]
        ends = np.cumsum(lengths)
        if all(map(str.isascii, texts)):
            kind = position_type(int(ends[-1]) if len(ends) else 0)
            ends = ends.astype(kind)
            return ends - lengths.astype(kind), ends
        data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
        # Continuation bytes are 10xxxxxx; every other byte begins a character.
        character = np.cumsum((data & 0xC0) != 0x80, dtype=position_type(len(data)))
        return character[ends - lengths] - 1, character[ends - 1]

    def _num_bytes(self, text: str) -> int:
        """Number of bytes that tokens can stand for; -1 if the tokenizer would change the characters of the text."""
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return -1
        return len(text.encode())
