"""Rows that are tokenized already: `input_ids`, and `labels` or masks that say which of them are trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.common.data_records import IGNORED, Conversation, RenderedText
from sft.common.given_tokens import GivenTokens
from sft.common.shown_rows import Segment
from sft.prompting.loss_weights import given_weights, text_weights
from sft.prompting.messages import RowRefused, kind_of
from sft.prompting.tokenizing import RowTokenizer, TokenizedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKS = ("loss_mask", "assistant_masks", "completion_mask")
"""Columns that say which tokens are trained, 1 or 0 for each: where there are several, a token is trained that all of
them train."""


def given_tokens(record: Mapping[str, Any]) -> Conversation:
    """The tokens of a record. Without labels and masks, every token is trained.

    Raises:
        RowRefused: `missing_field`, `wrong_type`, `empty_text`, `lengths_differ`, `labels_differ` (a label that is
            neither its token nor -100) or `padding_inside` (a zero of `attention_mask` between ones).
    """
    input_ids = _numbers(record, "input_ids")
    if input_ids is None:
        raise RowRefused("missing_field", "no field 'input_ids'")
    if not len(input_ids):
        raise RowRefused("empty_text", "'input_ids' is empty")
    trained = np.ones(len(input_ids), dtype=bool)
    labels = _beside(record, "labels", input_ids)
    if labels is not None:
        trained = labels != IGNORED
        if (other := np.flatnonzero(trained & (labels != input_ids))).size:
            place = int(other[0])
            raise RowRefused(
                "labels_differ",
                f"labels[{place}] is {labels[place]}; it must be input_ids[{place}], {input_ids[place]}, or {IGNORED} "
                "(labels are not shifted)",
            )
    for name in MASKS:
        mask = _mask(record, name, input_ids)
        if mask is not None:
            trained = trained & mask
    attended = _mask(record, "attention_mask", input_ids)
    has_padding = attended is not None and not attended.all()
    if attended is not None and has_padding:
        input_ids, trained = _without_padding(input_ids, trained, attended)
    # Too large for int32 is too large for any vocabulary: -1 is refused with it.
    is_id = (input_ids >= 0) & (input_ids < 2**31)
    tokens = GivenTokens(
        input_ids=np.where(is_id, input_ids, -1).astype(np.int32), trained=trained, has_padding=has_padding
    )
    return Conversation(tokens=tokens)


def as_rendered(conversation: Conversation) -> RenderedText:
    """The tokens of a conversation, which need no rendering."""
    return RenderedText(text="", trained_spans=(), tokens=conversation.tokens, weights=text_weights(conversation))


class GivenTokensReader(RowTokenizer):
    """Labels the tokens of rows that are tokenized already."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, add_end_token: bool = False, **options: Any):
        """
        Args:
            tokenizer: The tokenizer, whose ids are allowed.
            add_end_token: Append the tokenizer's end token to rows whose last token is trained and ends no answer.
            options: As for `RowTokenizer`.
        """
        super().__init__(tokenizer, is_chat=True, **options)
        self._add_end_token = add_end_token
        self._num_ids = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)

    def __call__(self, rows: Sequence[RenderedText]) -> TokenizedRows:
        """Check and label all rows. A row with an id beyond the vocabulary is refused (`ids_beyond_vocabulary`)."""
        found = [self._completed(row) for row in rows]
        bad: dict[int, RowRefused] = {}
        for index, tokens in enumerate(found):
            beyond = np.flatnonzero((tokens.input_ids < 0) | (tokens.input_ids >= self._num_ids))
            if len(beyond):
                bad[index] = self._beyond(int(beyond[0]), int(tokens.input_ids[beyond[0]]))
        good = [tokens for index, tokens in enumerate(found) if index not in bad]
        numbers = [index for index in range(len(found)) if index not in bad]
        selected = self.select(
            np.concatenate([np.zeros(0, np.int32), *(tokens.input_ids for tokens in good)]),
            np.asarray([len(tokens.input_ids) for tokens in good], dtype=np.int64),
            np.concatenate([np.zeros(0, bool), *(tokens.trained for tokens in good)]),
            given_weights([(rows[index], found[index].trained) for index in numbers]),
        )
        return selected.with_refusals({numbers[index]: refusal for index, refusal in selected.refusals.items()} | bad)

    def segments(self, row: RenderedText) -> tuple[Segment, ...]:
        """The decoded tokens up to where the row is truncated, split where training begins and ends."""
        tokens = self._completed(row)
        input_ids, trained = tokens.input_ids[: self._max_seq_length], tokens.trained[: self._max_seq_length]
        edges = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(input_ids)]
        return tuple(
            Segment(
                text=self._decoded(input_ids[begin:end]),
                trained=bool(trained[begin]),
                weight=None if row.weights is None else row.weights.spans[0] * trained[begin],
            )
            for begin, end in pairwise(edges)
        )

    def _completed(self, row: RenderedText) -> GivenTokens:
        """The tokens of a row, with an end token where it is asked for."""
        assert row.tokens is not None  # of a row of this format
        input_ids, trained = row.tokens.input_ids, row.tokens.trained
        end = self._tokenizer.eos_token_id
        if not self._add_end_token or end is None or not trained[-1] or input_ids[-1] in self._ends:
            return row.tokens
        return GivenTokens(
            input_ids=np.append(input_ids, np.int32(end)),
            trained=np.append(trained, True),
            has_padding=row.tokens.has_padding,
        )

    def _decoded(self, input_ids: np.ndarray) -> str:
        return str(self._tokenizer.decode(input_ids.tolist(), clean_up_tokenization_spaces=False))

    def _beyond(self, place: int, found: int) -> RowRefused:
        shown = "is not an id" if found < 0 else f"is {found}"
        message = f"input_ids[{place}] {shown}; the tokenizer has the ids 0 to {self._num_ids - 1}"
        return RowRefused("ids_beyond_vocabulary", message)


def _numbers(record: Mapping[str, Any], name: str) -> np.ndarray | None:
    """A column of integers, int64 `[T]`; None if the record has none.

    Raises:
        RowRefused: `wrong_type`.
    """
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        try:  # CSV keeps the list as JSON text
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowRefused("wrong_type", f"{name!r} must be a list of integers, found text") from None
    if not isinstance(value, list | tuple):
        raise RowRefused("wrong_type", f"{name!r} must be a list of integers, found {kind_of(value)}")
    with suppress(ValueError, OverflowError):  # nested lists, or integers beyond 64 bits
        numbers = np.asarray(value or (), dtype=None if value else np.int64)
        if numbers.ndim == 1 and numbers.dtype.kind in ("i", "b" if name in (*MASKS, "attention_mask") else "i"):
            return numbers.astype(np.int64, copy=False)
    for place, number in enumerate(value):
        if isinstance(number, bool) or not isinstance(number, int):
            raise RowRefused("wrong_type", f"{name}[{place}] must be an integer, found {kind_of(number)}")
    # Clipped, since what is beyond 64 bits is beyond any vocabulary, too.
    return np.asarray([max(min(number, 2**40), -(2**40)) for number in value], dtype=np.int64)


def _beside(record: Mapping[str, Any], name: str, input_ids: np.ndarray) -> np.ndarray | None:
    """A column with a number for each token; None if the record has none."""
    values = _numbers(record, name)
    if values is not None and len(values) != len(input_ids):
        raise RowRefused("lengths_differ", f"{name!r} has {len(values)} entries, and 'input_ids' {len(input_ids)}")
    return values


def _mask(record: Mapping[str, Any], name: str, input_ids: np.ndarray) -> np.ndarray | None:
    """A column of ones and zeros, bool `[T]`; None if the record has none."""
    values = _beside(record, name, input_ids)
    if values is None:
        return None
    if (other := np.flatnonzero((values != 0) & (values != 1))).size:
        raise RowRefused("wrong_type", f"{name}[{other[0]}] must be 0 or 1, found {values[other[0]]}")
    return values == 1


def _without_padding(input_ids: np.ndarray, trained: np.ndarray, attended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens without padding at either end."""
    places = np.flatnonzero(attended)
    if not len(places):
        raise RowRefused("empty_text", "'attention_mask' has no 1, so the row is padding only")
    begin, end = int(places[0]), int(places[-1]) + 1
    if len(places) != end - begin:
        gap = begin + int(np.flatnonzero(~attended[begin:end])[0])
        raise RowRefused(
            "padding_inside", f"attention_mask[{gap}] is 0 between ones; zeros may only mark padding at the ends"
        )
    return input_ids[begin:end], trained[begin:end]
