"""Tokens of rendered texts, with the characters that each token stands for.

Shapes: `T` tokens of a text, `R` texts, `N` tokens of all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sft.prompting.byte_lengths import ByteLengths, BytesDoNotFit
from sft.prompting.long_texts import LONG, Encoded, EncodedParts, LongTexts, position_type
from sft.prompting.quoted_tokens import QuotedTokens, Span, segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 1 << 18
"""Characters of texts that are tokenized together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenOffsets:
    """The tokens of complete texts, concatenated, `[N]` each."""

    input_ids: np.ndarray
    """int32."""
    starts: np.ndarray
    """int32 (int64 for two gigabytes of text): each token stands for the characters `[start, end)`, counted through all
    texts. A token without characters (an added begin-of-text token) starts where it ends."""
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
    def byte_lengths(self) -> ByteLengths | None:
        """Locates tokens without asking the tokenizer for offsets; None if it is not a byte-level one.

        Built at first use, since that costs more than tokenizing a hundred rows.
        """
        return ByteLengths.of(self._tokenizer) if self._is_chat or self._added is not None else None

    @cached_property
    def _long_texts(self) -> LongTexts:
        return LongTexts(self._tokenizer.backend_tokenizer)

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

    def encode_quoting(self, text: str, quoted: Sequence[Span]) -> TokenOffsets:
        """The tokens of a text, in which some control tokens are ordinary characters."""
        if not self._is_chat:
            return self._encode_with_offsets([text], split_special_tokens=True)
        spans = list(segments(text, quoted, self._special_tokens))
        texts = [text[start:end] for (start, end), _ in spans]
        parts = _concatenate(
            [
                self._encode_with_offsets([one], split_special_tokens=True) if is_quoting else self([one])
                for one, (_, is_quoting) in zip(texts, spans, strict=True)
            ],
            texts,
        )
        return replace(parts, lengths=np.asarray([len(parts.input_ids)]))

    @cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        return QuotedTokens(self._tokenizer, "text").pattern

    def encode_all(self, texts: Sequence[str], quoted: Sequence[Sequence[Span]]) -> TokenOffsets:
        """The tokens of all texts, of which some have control tokens that are ordinary characters."""
        if not any(quoted):
            return self(texts)
        return _concatenate(
            [
                self.encode_quoting(text, spans) if spans else self([text])
                for text, spans in zip(texts, quoted, strict=True)
            ],
            texts,
        )

    def __call__(self, texts: Sequence[str]) -> TokenOffsets:
        """The tokens of all texts, without truncation."""
        if sum(map(len, texts)) <= min(AT_ONCE, LONG):
            return self._encode_together(texts)
        return _concatenate(
            [
                self._encode_alone(group[0]) if len(group[0]) > LONG else self._encode_together(group)
                for group in _groups(texts)
            ],
            texts,
        )

    def _encode_together(self, texts: Sequence[str]) -> TokenOffsets:
        if self.byte_lengths is None:
            return self._encode_with_offsets(texts)
        input_ids, lengths = self.byte_lengths.encode(texts)
        fits = self.byte_lengths.fits(texts, input_ids, lengths)
        if not self._is_chat:
            fits &= ~self._begins_twice(input_ids, lengths)
        if fits.all():
            return self._located(self.byte_lengths, texts, input_ids, lengths)
        ids_of_text = np.split(input_ids, np.cumsum(lengths)[:-1])
        return _concatenate(
            [
                self._located(self.byte_lengths, [text], ids, np.asarray([len(ids)]))
                if fit
                else self._encode_with_offsets([text])
                for text, ids, fit in zip(texts, ids_of_text, fits, strict=True)
            ],
            texts,
        )

    def _encode_alone(self, text: str) -> TokenOffsets:
        """The tokens of a long text, made in parts."""
        if not self._is_chat and self._added is None:
            return self._encode_with_offsets([text])
        parts = None
        if self.byte_lengths is not None:
            with suppress(BytesDoNotFit):
                parts = self._long_texts.encode(text, self.byte_lengths.encode_located)
        if parts is None:
            parts = self._long_texts.encode(text, lambda part: self._reported([part], add_special_tokens=False)[0])
        if not self._is_chat:
            self._complete_parts(parts, len(text))
        input_ids, starts, ends = parts.joined()
        return TokenOffsets(input_ids=input_ids, starts=starts, ends=ends, lengths=np.asarray([len(input_ids)]))

    def _begins_twice(self, input_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether a text itself begins with two begin-of-text tokens, bool `[R]`."""
        begins = np.cumsum(lengths) - lengths
        is_bos = np.append(input_ids == self._tokenizer.bos_token_id, [False, False])
        return (lengths > 1) & is_bos[begins] & is_bos[begins + 1]

    def _located(
        self, byte_lengths: ByteLengths, texts: Sequence[str], input_ids: np.ndarray, lengths: np.ndarray
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

    def _complete_parts(self, parts: EncodedParts, length: int) -> None:
        """As `_complete_text`, of the tokens of a text with that many characters."""
        assert self._added is not None  # otherwise the text is tokenized whole
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        adds_bos, adds_eos = self._added
        first = parts.input_ids[0][:2].tolist()
        if adds_bos and first[:1] != [bos]:
            parts.insert(0, _one_token(bos, 0))
        elif not adds_bos and bos is not None and first == [bos, bos]:
            parts.drop_first_token()
        if eos is not None and (adds_eos or parts.input_ids[-1][-1:].tolist() != [eos]):
            parts.insert(len(parts.input_ids), _one_token(eos, length))

    def _encode_with_offsets(self, texts: Sequence[str], *, split_special_tokens: bool = False) -> TokenOffsets:
        """The tokens of all texts, with the offsets that the tokenizer reports."""
        encoded = self._reported(texts, add_special_tokens=not self._is_chat, split_special_tokens=split_special_tokens)
        if not self._is_chat:
            encoded = [
                _complete_text(self._tokenizer, *one, len(text)) for one, text in zip(encoded, texts, strict=True)
            ]
        return _concatenate(
            [
                TokenOffsets(input_ids=ids, starts=starts, ends=ends, lengths=np.asarray([len(ids)]))
                for ids, starts, ends in encoded
            ],
            texts,
        )

    def _reported(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool = False
    ) -> list[Encoded]:
        """The tokens of each text, with the offsets that the tokenizer reports."""
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        # The call leaves it as it set it, and other calls go to the backend directly.
        self._tokenizer.backend_tokenizer.encode_special_tokens = False
        results = []
        for text, ids, pairs in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            offsets = np.asarray(pairs, dtype=position_type(len(text))).reshape(-1, 2)
            starts, ends = offsets[:, 0].copy(), offsets[:, 1].copy()
            for index in np.flatnonzero((starts == ends) & (ends > 0)):
                # Tokenizers that trim offsets (such as GPT-NeoX's) report an empty range for a white-space token.
                starts[index] -= text[ends[index] - 1].isspace()
            results.append((np.asarray(ids, dtype=np.int32), starts, ends))
        return results


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in order, as many as are tokenized together; a long text is alone."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and (size + len(text) > AT_ONCE or len(text) > LONG):
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
        if len(text) > LONG:
            yield group
            group, size = [], 0
    if group:
        yield group


def _concatenate(parts: Sequence[TokenOffsets], texts: Sequence[str]) -> TokenOffsets:
    """The tokens of consecutive texts: each part has those of one or several."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in parts)])
    ends_of_texts = np.cumsum([0, *map(len, texts)])
    kind = position_type(int(ends_of_texts[-1]))
    begins = ends_of_texts[np.cumsum([0, *(len(part.lengths) for part in parts)])].tolist()
    none = np.zeros(0, dtype=np.int32)
    shifted = [
        [
            none.astype(kind),
            *(getattr(part, name).astype(kind) + kind(begin) for part, begin in zip(parts, begins, strict=False)),
        ]
        for name in ("starts", "ends")
    ]
    return TokenOffsets(
        input_ids=np.concatenate([none, *(part.input_ids for part in parts)]),
        starts=np.concatenate(shifted[0]),
        ends=np.concatenate(shifted[1]),
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
    end = starts.dtype.type(length)
    if len(input_ids) == 0 or input_ids[-1] != eos:
        return np.append(input_ids, np.int32(eos)), np.append(starts, end), np.append(ends, end)
    if ends[-1] == starts[-1]:  # added by the tokenizer, without characters
        return input_ids, np.append(starts[:-1], end), np.append(ends[:-1], end)
    return input_ids, starts, ends


def _one_token(token: int, place: int) -> Encoded:
    """An added token, which has no characters."""
    position = np.asarray([place], dtype=position_type(place))
    return np.asarray([token], dtype=np.int32), position, position
