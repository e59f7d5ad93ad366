"""Rendered text to `input_ids` and `labels`, by character positions.

Rows are tokenized many at a time and their tokens lie one row after another, so that numpy is called a few times for
all of them: called for each row, it would cost a tenth of the tokenizer's time.

Shapes: `T` tokens of a row, `R` rows, `N` tokens of all of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.common.data_records import RenderedText, Segment
from sft.prompting.messages import RowRefused

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
class TokenizedRows:
    """Rows as the model sees them, one after another, without those that have nothing left to train on."""

    input_ids: np.ndarray
    """int32 `[N]`, and so `labels`."""
    labels: np.ndarray
    lengths: np.ndarray
    """int64 `[R]`: tokens of each row."""
    full_length: np.ndarray
    """int64 `[R]`: tokens before anything was cut."""
    num_supervised: np.ndarray
    """int64 `[R]`, and what follows bool `[R]`: each as `TokenizedRow` has it."""
    lost_its_end: np.ndarray
    has_trained_end: np.ndarray
    refusals: Mapping[int, RowRefused]
    """Place among the rows that were given, from 0 -> why it is none of these."""

    def apart(self) -> list[TokenizedRow | RowRefused]:
        """Each row that was given, or why it cannot be used. Copies: one that is kept does not keep the others."""
        stops = np.cumsum(self.lengths)
        bounds = zip((stops - self.lengths).tolist(), stops.tolist(), strict=True)
        used = (
            TokenizedRow(
                input_ids=self.input_ids[begin:stop].copy(),
                labels=self.labels[begin:stop].copy(),
                full_length=int(self.full_length[row]),
                lost_its_end=bool(self.lost_its_end[row]),
                has_trained_end=bool(self.has_trained_end[row]),
            )
            for row, (begin, stop) in enumerate(bounds)
        )
        return [self.refusals.get(place) or next(used) for place in range(len(self.lengths) + len(self.refusals))]


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlacedTokens:
    """Whole rows' tokens, one row after another, `[N]` each."""

    input_ids: np.ndarray
    """int32."""
    starts: np.ndarray
    """int64: the characters `[start, end)` that a token stands for, counted through the texts of all rows. A token
    without characters (begin-of-text that is added) starts where it ends."""
    ends: np.ndarray
    lengths: np.ndarray
    """int64 `[R]`: tokens of each row."""


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

    @cached_property
    def _token_bytes(self) -> "_ByteLengths | None":
        """How to place tokens without asking for offsets, if that can be done. Made at the first use: it costs more
        than a hundred rows."""
        return _ByteLengths.of(self._tokenizer) if self._is_chat else None

    def __call__(self, rows: Sequence[RenderedText]) -> TokenizedRows:
        """The tokens of all rows."""
        tokens = self._placed(rows)
        return self._cut(tokens, self._trained(tokens, rows))

    def segments(self, row: RenderedText) -> tuple[Segment, ...]:
        """The text of a row as far as it is kept, cut where training begins and ends: read off the labels."""
        placed = self._placed([row])
        limit, text = self._max_seq_length, row.text
        starts, ends = placed.starts[:limit], placed.ends[:limit]
        trained = self._trained(placed, [row])[:limit]
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

    def _placed(self, rows: Sequence[RenderedText]) -> _PlacedTokens:
        """The tokens of all rows, before anything is cut."""
        texts = [row.text for row in rows]
        if self._token_bytes is None:
            return _joined(texts, self._encode_with_offsets(texts))
        encodings = self._token_bytes.backend.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(texts))
        input_ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.int32)
        fits = self._token_bytes.fits(texts, input_ids, lengths)
        if fits.all():
            starts, ends = self._token_bytes.places(texts, input_ids)
            return _PlacedTokens(input_ids=input_ids, starts=starts, ends=ends, lengths=lengths)
        own_ids = np.split(input_ids, np.cumsum(lengths)[:-1])
        return _joined(
            texts,
            [
                (ids, *self._token_bytes.places([text], ids)) if fit else self._encode_with_offsets([text])[0]
                for text, ids, fit in zip(texts, own_ids, fits, strict=True)
            ],
        )

    def _trained(self, tokens: _PlacedTokens, rows: Sequence[RenderedText]) -> np.ndarray:
        """Which tokens are trained, bool `[N]`: those that stand for a character of a trained span, were it in part;
        and the end of a plain text."""
        text_ends = np.cumsum([len(row.text) for row in rows], dtype=np.int64)
        characters = np.zeros(text_ends[-1] if rows else 0, dtype=bool)
        for row, text_end in zip(rows, text_ends.tolist(), strict=True):
            begin = text_end - len(row.text)
            for start, end in row.trained_spans:
                characters[begin + start : begin + end] = True
        before = _counts_before(characters)
        trained = before[tokens.ends] > before[tokens.starts]
        if not self._is_chat and self._tokenizer.eos_token_id is not None:
            trained[np.cumsum(tokens.lengths) - 1] = True
        return trained

    def _encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Each text's tokens, and the characters `[start, end)` of it that they stand for; int32 and int64, `[T]`."""
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
                # Tokenizers that trim offsets (GPT-NeoX and its kin) leave nothing of a token that is all white space.
                starts[index] -= text[ends[index] - 1].isspace()
            tokens = (np.asarray(ids, dtype=np.int32), starts, ends)
            results.append(tokens if self._is_chat else _complete_text(self._tokenizer, *tokens, len(text)))
        return results

    def _cut(self, tokens: _PlacedTokens, trained: np.ndarray) -> TokenizedRows:
        lengths, limit = tokens.lengths, self._max_seq_length
        stops = np.cumsum(lengths)
        begins = stops - lengths
        cuts = np.minimum(begins + limit, stops)
        predicted = trained.copy()
        predicted[begins[lengths > 0]] = False  # a row's first token has nothing to be predicted from
        before = _counts_before(predicted)
        ends_before = _counts_before(predicted & np.isin(tokens.input_ids, self._ends))
        num_supervised = before[cuts] - before[begins]
        num_lost = before[stops] - before[cuts]
        is_too_long = lengths > limit
        is_refused = num_supervised + num_lost == 0
        is_refused |= is_too_long & (num_supervised == 0 if self._keep_too_long else True)
        input_ids, labels = tokens.input_ids, np.where(trained, tokens.input_ids, np.int32(IGNORED))
        if is_refused.any() or is_too_long.any():
            is_kept = np.repeat(~is_refused, lengths) & (np.arange(len(input_ids)) < np.repeat(cuts, lengths))
            input_ids, labels = input_ids[is_kept], labels[is_kept]
        used = ~is_refused
        return TokenizedRows(
            input_ids=input_ids,
            labels=labels,
            lengths=(cuts - begins)[used],
            full_length=lengths[used],
            num_supervised=num_supervised[used],
            lost_its_end=num_lost[used] > 0,
            has_trained_end=(ends_before[cuts] > ends_before[begins])[used],
            refusals={
                row: self._refusal(int(lengths[row]), int(num_supervised[row]), int(num_lost[row]))
                for row in np.flatnonzero(is_refused).tolist()
            },
        )

    def _refusal(self, length: int, num_supervised: int, num_lost: int) -> RowRefused:
        """Why a row of so many tokens is refused, of which a cut leaves and takes so many trained ones."""
        limit = self._max_seq_length
        if not num_supervised + num_lost:
            return RowRefused("nothing_to_train", "no token of it is trained")
        if not self._keep_too_long:
            loses = "answer" if not num_supervised else "end" if num_lost else "prompt"
            message = f"it has {length:,} tokens, more than max_seq_length {limit:,}"
            return RowTooLong("too_long", message, length, loses)
        message = f"its {length} tokens are cut to max_seq_length {limit}, before the answer begins"
        return RowTooLong("nothing_left_after_truncation", message, length, "answer")


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
        lengths = np.zeros(max(vocabulary.values(), default=0) + 1, dtype=np.int64)
        # In the byte-level alphabet a byte is one character.
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        for index, token in backend.get_added_tokens_decoder().items():
            lengths[index] = len(token.content.encode())
        found = cls(backend, lengths, normalizer == "NFC")
        probe = "A b\u00e9\n\n  c <x> 12\u65e5"
        direct = np.asarray(backend.encode(probe, add_special_tokens=False).ids)
        same = direct.tolist() == tokenizer(probe, add_special_tokens=False)["input_ids"]
        return found if same and found.fits([probe], direct, np.asarray([len(direct)])).all() else None

    def fits(self, texts: Sequence[str], input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether the bytes of a text's tokens add up to those of the text, bool `[R]`.

        Args:
            texts: `R` of them.
            input_ids: their tokens, `[N]`.
            lengths: tokens of each, `[R]`.
        """
        bytes_before = np.concatenate([[0], np.cumsum(self._lengths[input_ids])])
        stops = np.cumsum(lengths)
        num_bytes = [len(text) if text.isascii() else self._num_bytes(text) for text in texts]
        return bytes_before[stops] - bytes_before[stops - lengths] == num_bytes

    def places(self, texts: Sequence[str], input_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The characters `[start, end)` of each token, counted through all texts, int64 `[N]` each; the bytes of each
        text have to add up. A token of a part of a character stands for that character."""
        lengths = self._lengths[input_ids]
        ends = np.cumsum(lengths)
        if all(map(str.isascii, texts)):
            return ends - lengths, ends
        data = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
        # Continuation bytes are 10xxxxxx: a character begins with every other byte.
        character = np.cumsum((data & 0xC0) != 0x80)
        return character[ends - lengths] - 1, character[ends - 1]

    def _num_bytes(self, text: str) -> int:
        """Bytes that tokens may stand for; -1 where the tokenizer takes other characters than the text's."""
        if self._normalizes and not unicodedata.is_normalized("NFC", text):
            return -1
        return len(text.encode())


def _counts_before(chosen: np.ndarray) -> np.ndarray:
    """How many are chosen before each place, and before the end: bool `[N]` to int64 `[N + 1]`."""
    counts = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(chosen, out=counts[1:])
    return counts


def _joined(texts: Sequence[str], rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> _PlacedTokens:
    """The tokens of all texts, from each one's ids, starts and ends."""
    lengths = np.asarray([len(ids) for ids, _, _ in rows], dtype=np.int64)
    begins = np.repeat(np.cumsum([0, *map(len, texts)])[:-1], lengths)
    none = np.zeros(0, dtype=np.int64)
    return _PlacedTokens(
        input_ids=np.concatenate([none.astype(np.int32), *(ids for ids, _, _ in rows)]),
        starts=np.concatenate([none, *(starts for _, starts, _ in rows)]) + begins,
        ends=np.concatenate([none, *(ends for _, _, ends in rows)]) + begins,
        lengths=lengths,
    )


def _complete_text(
    tokenizer: "PreTrainedTokenizerBase", input_ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plain text with exactly one begin-of-text (if the tokenizer uses it) and one end-of-text.

    Args:
        input_ids, starts, ends: tokens of the whole text and their characters, `[T]`.
        length: of the text, in characters: where an end that is added stands.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(input_ids) > 1 and bos is not None and input_ids[0] == input_ids[1] == bos:
        input_ids, starts, ends = input_ids[1:], starts[1:], ends[1:]
    if eos is None:
        return input_ids, starts, ends
    if len(input_ids) == 0 or input_ids[-1] != eos:
        return np.append(input_ids, np.int32(eos)), np.append(starts, length), np.append(ends, length)
    if ends[-1] == starts[-1]:  # the tokenizer's own, without a place
        return input_ids, np.append(starts[:-1], length), np.append(ends[:-1], length)
    return input_ids, starts, ends
