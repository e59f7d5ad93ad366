"""Rendered text to `input_ids` and `labels`, by character positions.

Many rows are tokenized together and their tokens are concatenated, so that numpy is called a few times for all of them:
calling it for each row would cost a tenth of the tokenizer's time.

Shapes: `T` tokens of a row, `R` rows, `N` tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.common.data_records import IGNORED, RenderedText
from sft.common.shown_rows import Segment
from sft.prompting.loss_weights import joined_weights, token_weights
from sft.prompting.messages import RowRefused
from sft.prompting.offsets import OffsetEncoder, TokenOffsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BLOCK = 1 << 16
"""Tokens whose positions are compared with the trained spans at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRow:
    """The tokens of one row, int32 `[T]` each."""

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    """float32 `[T]`: share of each token in the loss. None: 1 of supervised tokens, 0 of others."""
    full_length: int
    """Number of tokens before truncation."""
    lost_end: bool
    """Whether truncation removed supervised tokens: the model does not learn the end of the answer from this row."""
    has_trained_end: bool
    """Whether one of the tokens that end an answer is trained."""
    split_tokens: tuple[str, ...] = ()
    """Texts of the tokens of which only a part is in a trained span. The whole token is trained."""
    is_shortened: bool = False
    """Whether it is the latest turns of a conversation that is too long."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What a row of a micro-batch consists of."""
        plain = {"input_ids": self.input_ids, "labels": self.labels}
        return plain if self.weights is None else plain | {"weights": self.weights}

    @property
    def was_truncated(self) -> bool:
        return self.full_length > len(self.input_ids) and not self.is_shortened

    @property
    def num_supervised(self) -> int:
        """Number of tokens that are predicted and trained. The first token of a row is not predicted."""
        return int((self.labels[1:] != IGNORED).sum())


class RowTooLong(RowRefused):
    """A row with more than `max_seq_length` tokens, and what truncation would lose."""

    def __init__(self, reason: str, message: str, full_length: int, loses: str):
        super().__init__(reason, message)
        self.full_length = full_length
        self.loses = loses
        """`answer` (all supervised tokens), `end` (some of them) or `prompt` (none of them)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem.reason, self.problem.message, self.full_length, self.loses)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRows:
    """The tokens of several rows, concatenated, without the refused rows."""

    input_ids: np.ndarray
    """int32 `[N]`, as is `labels`."""
    labels: np.ndarray
    weights: np.ndarray | None = None
    """float32 `[N]`, as in `TokenizedRow`."""
    lengths: np.ndarray
    """int64 `[R]`: number of tokens of each row."""
    full_length: np.ndarray
    """int64 `[R]`: number of tokens before truncation."""
    num_supervised: np.ndarray
    """int64 `[R]`. This and the next two (bool `[R]`) are defined as in `TokenizedRow`."""
    lost_end: np.ndarray
    has_trained_end: np.ndarray
    refusals: Mapping[int, RowRefused]
    """Index among the given rows -> why that row is not included."""
    split_tokens: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Index among the included rows -> as in `TokenizedRow`; rows without any are missing."""
    shortened: frozenset[int] = frozenset()
    """Indices among the included rows: see `TokenizedRow.is_shortened`."""

    def with_refusals(self, refusals: Mapping[int, RowRefused]) -> "TokenizedRows":
        """The same rows among given ones of which these are refused."""
        return replace(self, refusals=refusals)

    def split(self) -> list[TokenizedRow | RowRefused]:
        """Each given row by itself, or why it was refused. Copies, so that keeping one does not keep all in memory."""
        stops = np.cumsum(self.lengths)
        bounds = zip((stops - self.lengths).tolist(), stops.tolist(), strict=True)
        used = (
            TokenizedRow(
                input_ids=self.input_ids[begin:stop].copy(),
                labels=self.labels[begin:stop].copy(),
                weights=None if self.weights is None else self.weights[begin:stop].copy(),
                full_length=int(self.full_length[row]),
                lost_end=bool(self.lost_end[row]),
                has_trained_end=bool(self.has_trained_end[row]),
                split_tokens=self.split_tokens.get(row, ()),
                is_shortened=row in self.shortened,
            )
            for row, (begin, stop) in enumerate(bounds)
        )
        return [self.refusals.get(index) or next(used) for index in range(len(self.lengths) + len(self.refusals))]


def joined_rows(outcomes: Sequence[TokenizedRow | RowRefused]) -> TokenizedRows:
    """Rows by themselves, concatenated: the inverse of `TokenizedRows.split`."""
    rows = [row for row in outcomes if not isinstance(row, RowRefused)]
    empty = np.zeros(0, dtype=np.int32)
    return TokenizedRows(
        input_ids=np.concatenate([empty, *(row.input_ids for row in rows)]),
        labels=np.concatenate([empty, *(row.labels for row in rows)]),
        weights=joined_weights([(row.weights, row.labels) for row in rows]),
        lengths=np.asarray([len(row.input_ids) for row in rows], dtype=np.int64),
        full_length=np.asarray([row.full_length for row in rows], dtype=np.int64),
        num_supervised=np.asarray([row.num_supervised for row in rows], dtype=np.int64),
        lost_end=np.asarray([row.lost_end for row in rows], dtype=bool),
        has_trained_end=np.asarray([row.has_trained_end for row in rows], dtype=bool),
        refusals={index: row for index, row in enumerate(outcomes) if isinstance(row, RowRefused)},
        split_tokens={index: row.split_tokens for index, row in enumerate(rows) if row.split_tokens},
        shortened=frozenset(index for index, row in enumerate(rows) if row.is_shortened),
    )


class RowTokenizer:
    """Tokenizes rendered rows and labels the tokens to train."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        is_chat: bool,
        max_seq_length: int,
        truncate: bool = True,
        end_token_ids: Sequence[int] | None = None,
        masks_boundary: bool = False,
    ):
        """
        Args:
            tokenizer: A fast tokenizer.
            is_chat: Whether rows are rendered conversations, to which nothing is added. Plain text gets the special
                tokens that the tokenizer adds (begin-of-text once) and an end-of-text token, which is trained: without
                it the model would not learn to stop.
            max_seq_length: Maximum number of tokens of a row.
            truncate: Truncate longer rows; False refuses them.
            end_token_ids: Tokens that end an answer. Defaults to the tokenizer's end token.
            masks_boundary: Do not train tokens that have characters outside of the trained spans.
        """
        self._masks_boundary = masks_boundary
        self._tokenizer = tokenizer
        self._encode = OffsetEncoder(tokenizer, is_chat=is_chat)
        self._is_chat = is_chat
        self._max_seq_length = max_seq_length
        self._truncate = truncate
        self._ends = np.asarray([tokenizer.eos_token_id] if end_token_ids is None else end_token_ids, dtype=np.int64)

    def __call__(self, rows: Sequence[RenderedText]) -> TokenizedRows:
        """Tokenize and label all rows."""
        tokens = self._encode.encode_all([row.text for row in rows], [row.quoted for row in rows])
        trained, split = self._is_trained(tokens, rows)
        split_tokens = self._split_texts(tokens, rows, split)
        weights = token_weights(tokens, rows, trained)
        input_ids, lengths = tokens.input_ids, tokens.lengths
        del tokens, split  # as large as all that follows
        selected = self.select(input_ids, lengths, trained, weights)
        used = (row for row in range(len(rows)) if row not in selected.refusals)
        found = {index: split_tokens[row] for index, row in enumerate(used) if row in split_tokens}
        return replace(selected, split_tokens=found)

    def segments(self, row: RenderedText) -> tuple[Segment, ...]:
        """The text of a row up to where it is truncated, split where training begins and ends according to labels."""
        tokens = self._encode.encode_all([row.text], [row.quoted])
        limit, text = self._max_seq_length, row.text
        starts, ends = tokens.starts[:limit], tokens.ends[:limit]
        trained = self._is_trained(tokens, [row])[0]
        weights = token_weights(tokens, [row], trained)
        has_weights, weights = weights is not None, (trained if weights is None else weights)[:limit]
        trained = trained[:limit]
        # An added end-of-text token has no characters in the text.
        is_added = starts >= len(text)
        kept = len(text) if len(tokens.starts) <= limit else int(ends.max(initial=0))
        is_trained, weight_of = np.zeros(kept, dtype=bool), np.zeros(kept, dtype=np.float32)
        reached, was_trained = 0, False
        shown = (array[~is_added] for array in (starts, ends, trained, weights))
        for start, end, now_trained, weight in zip(*shown, strict=True):
            if now_trained or weight:
                # White space between trained words that belongs to no token counts as trained.
                span = slice(reached if was_trained == now_trained and start > reached else start, end)
                is_trained[span], weight_of[span] = now_trained, weight
            reached, was_trained = max(reached, end), now_trained
        edges = [0, *(np.flatnonzero(np.diff(is_trained) | (np.diff(weight_of) != 0)) + 1).tolist(), kept]
        segments = [
            Segment(text=text[a:b], trained=bool(is_trained[a]), weight=float(weight_of[a]) if has_weights else None)
            for a, b in pairwise(edges)
            if b > a
        ]
        if (is_added & trained).any():
            weight = float(weights[-1]) if has_weights else None
            segments.append(Segment(text=self._tokenizer.eos_token, trained=True, weight=weight))
        return tuple(segments)

    def _is_trained(self, tokens: TokenOffsets, rows: Sequence[RenderedText]) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens are trained, bool `[N]`: those that overlap a trained span, and the end of a plain text.

        Second, which of them also have characters outside of it, bool `[N]`.
        """
        edges, counts = _trained_before(rows)
        trained, split = (np.empty(len(tokens.input_ids), dtype=bool) for _ in range(2))
        for begin in range(0, len(trained), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            starts, ends = tokens.starts[block], tokens.ends[block]
            num_trained = np.interp(ends, edges, counts) - np.interp(starts, edges, counts)
            split[block] = (num_trained > 0) & (num_trained < ends - starts)
            trained[block] = (num_trained > 0) & ~(split[block] & self._masks_boundary)
        if not self._is_chat and self._tokenizer.eos_token_id is not None:
            trained[np.cumsum(tokens.lengths) - 1] = True
        return trained, split

    def _split_texts(
        self, tokens: TokenOffsets, rows: Sequence[RenderedText], split: np.ndarray
    ) -> dict[int, tuple[str, ...]]:
        """Index of a row -> the texts of its split tokens, of those that truncation keeps."""
        if not split.any():
            return {}
        stops = np.cumsum(tokens.lengths)
        begins = stops - tokens.lengths
        text_begins = np.cumsum([0, *(len(row.text) for row in rows)])
        found: dict[int, tuple[str, ...]] = {}
        for token in np.flatnonzero(split).tolist():
            row = int(np.searchsorted(stops, token, side="right"))
            if token - begins[row] < self._max_seq_length:
                begin = int(text_begins[row])
                text = rows[row].text[tokens.starts[token] - begin : tokens.ends[token] - begin]
                found[row] = (*found.get(row, ()), text)
        return found

    def select(
        self, input_ids: np.ndarray, lengths: np.ndarray, trained: np.ndarray, weights: np.ndarray | None = None
    ) -> TokenizedRows:
        """Truncate rows that are too long, refuse those that leave nothing to train, and label the rest."""
        limit = self._max_seq_length
        stops = np.cumsum(lengths)
        begins = stops - lengths
        cuts = np.minimum(begins + limit, stops)
        predicted = trained.copy()
        predicted[begins[lengths > 0]] = False  # the first token of a row is not predicted
        num_supervised = _count(predicted, begins, cuts)
        num_lost = _count(predicted, cuts, stops)
        predicted &= np.isin(input_ids, self._ends)
        has_trained_end = _count(predicted, begins, cuts) > 0
        del predicted
        is_too_long = lengths > limit
        is_refused = num_supervised + num_lost == 0
        is_refused |= is_too_long & (num_supervised == 0 if self._truncate else True)
        labels = np.where(trained, input_ids, np.int32(IGNORED))
        if is_refused.any() or is_too_long.any():
            is_kept = np.repeat(~is_refused, lengths) & (np.arange(len(input_ids)) < np.repeat(cuts, lengths))
            input_ids, labels = input_ids[is_kept], labels[is_kept]
            weights = None if weights is None else weights[is_kept]
        used = ~is_refused
        return TokenizedRows(
            input_ids=input_ids,
            labels=labels,
            weights=weights,
            lengths=(cuts - begins)[used],
            full_length=lengths[used],
            num_supervised=num_supervised[used],
            lost_end=num_lost[used] > 0,
            has_trained_end=has_trained_end[used],
            refusals={
                row: self._refusal(int(lengths[row]), int(num_supervised[row]), int(num_lost[row]))
                for row in np.flatnonzero(is_refused).tolist()
            },
        )

    def _refusal(self, length: int, num_supervised: int, num_lost: int) -> RowRefused:
        """Why a row is refused.

        Args:
            length: Number of its tokens.
            num_supervised: Supervised tokens that truncation would keep.
            num_lost: Supervised tokens that truncation would remove.
        """
        limit = self._max_seq_length
        if not num_supervised + num_lost:
            return RowRefused("nothing_to_train", "it has no supervised token")
        if not self._truncate:
            loses = "answer" if not num_supervised else "end" if num_lost else "prompt"
            message = f"it has {length:,} tokens, more than max_seq_length {limit:,}"
            return RowTooLong("too_long", message, length, loses)
        message = f"its {length} tokens are truncated to max_seq_length {limit}, before the answer begins"
        return RowTooLong("nothing_left_after_truncation", message, length, "answer")


def _trained_before(rows: Sequence[RenderedText]) -> tuple[list[int], list[int]]:
    """The edges of the trained spans, counted through all texts, and how many trained characters are before each."""
    edges, counts = [0], [0]
    begin = 0
    for row in rows:
        reached = 0
        for start, end in sorted(row.trained_spans):
            if end > reached:
                start, reached = max(start, reached), end
                edges += (begin + start, begin + end)
                counts += (counts[-1], counts[-1] + end - start)
        begin += len(row.text)
    return edges, counts


def _count(chosen: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """How many are chosen from each start to its stop, int64 `[R]`. The ranges do not overlap and are in order."""
    bounds = np.stack([starts, stops], axis=1).ravel()
    # A sum of an empty range would be the element at its start, and no bound may be the end of the array.
    sums = np.add.reduceat(np.append(chosen, False).view(np.uint8), bounds, dtype=np.int64) if len(bounds) else bounds
    return sums[::2] * (starts < stops)
