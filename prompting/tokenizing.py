"""Rendered text to `input_ids` and `labels`, by character positions.

Shapes: `T` tokens of a row.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from prompting.messages import RowRefused
from sft_types import RenderedText, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not trained, as everywhere in torch and transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRow:
    """One row as the model sees it; both arrays int32, `[T]`."""

    input_ids: np.ndarray
    labels: np.ndarray
    full_length: int
    """Tokens before anything was cut."""
    lost_its_end: bool
    """Whether a part of what is trained was cut off: the end of the answer is not learned from this row."""
    has_trained_end: bool
    """Whether one of the tokens that end an answer is trained."""

    @property
    def was_truncated(self) -> bool:
        return self.full_length > len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that are predicted and trained; the first of a row has nothing to be predicted from."""
        return int((self.labels[1:] != IGNORED).sum())


class RowTooLong(RowRefused):
    """A row of more tokens than a row may have, and what a cut would take from it."""

    def __init__(self, reason: str, message: str, full_length: int, loses: str):
        super().__init__(reason, message)
        self.full_length = full_length
        self.loses = loses
        """`answer` (all that is trained), `end` (a part of it) or `prompt` (nothing that is trained)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem.reason, self.problem.message, self.full_length, self.loses)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlacedTokens:
    """A whole row's tokens, `[T]` each; those without characters (begin-of-text that is added) are `[0, 0)`."""

    input_ids: np.ndarray
    """int32."""
    starts: np.ndarray
    """int64: the characters `[start, end)` that a token stands for."""
    ends: np.ndarray
    trained: np.ndarray
    """bool."""


class RowTokenizer:
    """Tokenizes rendered rows and labels what is trained."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        is_chat: bool,
        max_seq_length: int,
        keep_too_long: bool = True,
        end_token_ids: Sequence[int] | None = None,
    ):
        """Args:
        tokenizer: a fast one.
        is_chat: chat text is complete as rendered, so nothing is added to it: no second begin-of-text. Plain text
            gets what the tokenizer itself adds (once), and the end-of-text token at its end, which is trained:
            without it a model never learns to stop.
        max_seq_length: most tokens of a row.
        keep_too_long: cut longer rows; else they are refused.
        end_token_ids: tokens that end an answer. Default: the tokenizer's end token.
        """
        self._tokenizer = tokenizer
        self._is_chat = is_chat
        self._max_seq_length = max_seq_length
        self._keep_too_long = keep_too_long
        self._ends = np.asarray([tokenizer.eos_token_id] if end_token_ids is None else end_token_ids, dtype=np.int64)
        self._token_bytes = _ByteLengths.of(tokenizer) if is_chat else None

    def __call__(self, rows: Sequence[RenderedText]) -> list[TokenizedRow | RowRefused]:
        """For each row its tokens, or why it has nothing left to train on."""
        return [self._cut(row.input_ids, row.trained) for row in self._placed(rows)]

    def segments(self, row: RenderedText) -> tuple[Segment, ...]:
        """The text of a row as far as it is kept, cut where training begins and ends: read off the labels."""
        (placed,) = self._placed([row])
        limit, text = self._max_seq_length, row.text
        starts, ends, trained = placed.starts[:limit], placed.ends[:limit], placed.trained[:limit]
        # What is added behind the text has no characters of it.
        is_added = starts >= len(text)
        kept = len(text) if len(placed.starts) <= limit else int(ends.max(initial=0))
        is_trained = np.zeros(kept, dtype=bool)
        reached, was_trained = 0, False
        for start, end, now_trained in zip(starts[~is_added], ends[~is_added], trained[~is_added], strict=True):
            if now_trained:
                # White space that no token stands for belongs to the trained words that it parts.
                is_trained[reached if was_trained and start > reached else start : end] = True
            reached, was_trained = max(reached, end), now_trained
        edges = [0, *(np.flatnonzero(np.diff(is_trained)) + 1).tolist(), kept]
        segments = [Segment(text=text[a:b], trained=bool(is_trained[a])) for a, b in pairwise(edges) if b > a]
        if (is_added & trained).any():
            segments.append(Segment(text=self._tokenizer.eos_token, trained=True))
        return tuple(segments)

    def _placed(self, rows: Sequence[RenderedText]) -> Iterator[_PlacedTokens]:
        """Each row's tokens, before anything is cut."""
        for row, (input_ids, starts, ends) in zip(rows, self._encode([row.text for row in rows]), strict=True):
            tokens = _PlacedTokens(
                input_ids=input_ids, starts=starts, ends=ends, trained=_trained_tokens(starts, ends, row.trained_spans)
            )
            yield tokens if self._is_chat else _complete_text(self._tokenizer, tokens, len(row.text))

    def _encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Each text's tokens with the characters `[start, end)` that they stand for; int32 and int64, `[T]`."""
        if not texts:
            return []
        if self._token_bytes is None:
            return self._encode_with_offsets(texts)
        encodings = self._token_bytes.backend.encode_batch_fast(texts, add_special_tokens=False)
        results = []
        for text, encoding in zip(texts, encodings, strict=True):
            input_ids = np.array(encoding.ids, dtype=np.int32)
            places = self._token_bytes.places(text, input_ids)
            results += self._encode_with_offsets([text]) if places is None else [(input_ids, *places)]
        return results

    def _encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
                # Tokenizers that trim offsets (GPT-NeoX and its kin) leave nothing of a token that is all white space.
                starts[index] -= text[ends[index] - 1].isspace()
            results.append((np.asarray(ids, dtype=np.int32), starts, ends))
        return results

    def _cut(self, input_ids: np.ndarray, trained: np.ndarray) -> TokenizedRow | RowRefused:
        if not trained[1:].any():
            return RowRefused("nothing_to_train", "no token of it is trained")
        limit, length = self._max_seq_length, len(input_ids)
        labels = np.where(trained, input_ids, np.int32(IGNORED)).astype(np.int32, copy=False)
        lost_its_end = bool(trained[limit:].any())
        if length > limit:
            loses = "end" if lost_its_end else "prompt"
            if not trained[1:limit].any():
                loses = "answer"
            if not self._keep_too_long:
                message = f"it has {length:,} tokens, more than max_seq_length {limit:,}"
                return RowTooLong("too_long", message, length, loses)
            if loses == "answer":
                message = f"its {length} tokens are cut to max_seq_length {limit}, before the answer begins"
                return RowTooLong("nothing_left_after_truncation", message, length, loses)
            # A copy, or the whole row would stay in memory behind the part that is kept.
            input_ids, labels = input_ids[:limit].copy(), labels[:limit].copy()
        return TokenizedRow(
            input_ids=input_ids,
            labels=labels,
            full_length=length,
            lost_its_end=lost_its_end,
            has_trained_end=bool((labels[1:, None] == self._ends).any()),
        )


class _ByteLengths:
    """Where the tokens of a byte-level tokenizer stand, from how many bytes each stands for.

    Such a tokenizer takes every byte of a text once and in order, so the lengths add up to places. Asking it for
    offsets costs a third of its time again.
    """

    def __init__(self, backend: Any, lengths: np.ndarray, normalizes: bool):
        self.backend = backend
        self._lengths = lengths
        self._normalizes = normalizes

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "_ByteLengths | None":
        """None for a tokenizer of another kind."""
        backend = tokenizer.backend_tokenizer
        kinds = {type(part).__name__ for part in (backend.model, backend.decoder)}
        normalizer = type(backend.normalizer).__name__
        if kinds != {"BPE", "ByteLevel"} or normalizer not in ("NoneType", "NFC"):
            return None
        # A saved tokenizer may cut or pad by itself.
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
        lengths = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int64)
        for token, index in vocabulary.items():
            # In the byte-level alphabet a byte is one character.
            lengths[index] = len(added[index].encode()) if index in added else len(token)
        found = cls(backend, lengths, normalizer == "NFC")
        probe = "A b\u00e9\n\n  c <x> 12\u65e5"
        direct = backend.encode(probe, add_special_tokens=False).ids
        same = direct == tokenizer(probe, add_special_tokens=False)["input_ids"]
        return found if same and found.places(probe, np.asarray(direct)) is not None else None

    def places(self, text: str, input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The characters `[start, end)` of each token, int64 `[T]` each; None where the bytes do not add up to the
        text's. A token of a part of a character stands for that character."""
        lengths = self._lengths[input_ids]
        ends = np.cumsum(lengths)
        if text.isascii():
            return (ends - lengths, ends) if len(ends) and ends[-1] == len(text) else None
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return None
        data = np.frombuffer(text.encode(), dtype=np.uint8)
        if not len(ends) or ends[-1] != len(data):
            return None
        # Continuation bytes are 10xxxxxx: a character begins with every other byte.
        character = np.cumsum((data & 0xC0) != 0x80)
        return character[ends - lengths] - 1, character[ends - 1]


def _trained_tokens(starts: np.ndarray, ends: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens stand for trained characters, `[T]` bool: those that overlap a span.

    A token without characters (begin-of-text that a tokenizer adds) is not trained.
    """
    trained = np.zeros(len(starts), dtype=bool)
    for start, end in spans:
        trained |= (starts < end) & (ends > start)
    return trained & (ends > starts)


def _complete_text(tokenizer: "PreTrainedTokenizerBase", tokens: _PlacedTokens, length: int) -> _PlacedTokens:
    """Plain text with exactly one begin-of-text (if the tokenizer uses it) and one end-of-text.

    Args:
        tokens: of the whole text.
        length: of the text, in characters: where an end that is added stands.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(tokens.input_ids) > 1 and bos is not None and tokens.input_ids[0] == tokens.input_ids[1] == bos:
        tokens = replace(tokens, **{name: getattr(tokens, name)[1:] for name in _PlacedTokens.__slots__})
    if eos is None:
        return tokens
    if len(tokens.input_ids) == 0 or tokens.input_ids[-1] != eos:
        return _PlacedTokens(
            input_ids=np.append(tokens.input_ids, np.int32(eos)),
            starts=np.append(tokens.starts, length),
            ends=np.append(tokens.ends, length),
            trained=np.append(tokens.trained, True),
        )
    if tokens.ends[-1] == tokens.starts[-1]:  # the tokenizer's own, without a place
        tokens = replace(tokens, starts=np.append(tokens.starts[:-1], length), ends=np.append(tokens.ends[:-1], length))
    return replace(tokens, trained=np.append(tokens.trained[:-1], True))
