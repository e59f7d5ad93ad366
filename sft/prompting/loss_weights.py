"""How much each token of a row counts in the loss: its message's weight times its row's.

Supervised tokens are those of the answers, whatever they weigh; so labels stay what they are without weights. A weight
is stored beside each token only where one of them is not 1, or where tokens outside of answers have one.

Shapes: `R` rows, `N` tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from sft.common.data_records import IGNORED, Conversation, RenderedText
from sft.common.weight_records import LossWeights
from sft.prompting.offsets import TokenOffsets
from sft.prompting.refusal import RowRefused, weight_of

WEIGHT_COLUMN = "weight"
SMALLEST, LARGEST = 1e-30, 1e30
"""Bounds of a product of weights other than 0: float32 holds them, and their sums."""


def row_weight(record: Mapping[str, Any]) -> float:
    """The weight of a row, from its column `weight`; 1 if there is none. CSV has numbers as text.

    Raises:
        RowRefused: `bad_weight` if it is not a finite number from 0, `nothing_to_train` if it is 0.
    """
    value = record.get(WEIGHT_COLUMN)
    if isinstance(value, str) and "_" not in value:
        with suppress(ValueError):  # refused below, as it is written
            value = float(value) if value.strip() else None
    weight = weight_of(value, f"the column {WEIGHT_COLUMN!r}")
    if not weight:
        raise RowRefused("nothing_to_train", "its weight is 0, so no token of it counts in the loss")
    return weight


def loss_weights(
    conversation: Conversation, trained: Sequence[int], spans: Mapping[int, Any], prompt_weight: float
) -> LossWeights | None:
    """The weights of a conversation's text; None where each trained token counts once, and no other.

    Args:
        conversation: The conversation.
        trained: Indices of its trained messages, in the order of their spans.
        spans: Index of an assistant message -> its span, or the refusal that says why it was not located.
        prompt_weight: Weight of the tokens outside of answers (`prompt_loss_weight`).

    Raises:
        RowRefused: `bad_weight` if a product of weights is too small or too large; why a turn that the row excludes was
            not located, where prompts are trained: it must not be trained as part of them.
    """
    own = conversation.message_weights
    weights = tuple(_product(own.get(index, 1.0), conversation.weight) for index in trained)
    prompt = _product(prompt_weight, conversation.weight)
    if not prompt:
        return None if all(weight == 1 for weight in weights) else LossWeights(spans=weights)
    excluded = [spans[index] for index, weight in own.items() if weight == 0]
    for span in excluded:
        if isinstance(span, RowRefused):
            raise span
    return LossWeights(spans=weights, prompt=prompt, excluded=tuple(excluded))


def text_weights(conversation: Conversation) -> LossWeights | None:
    """The weight of a plain text, or of token ids; None if it is 1."""
    weight = _product(1.0, conversation.weight)
    return None if weight == 1 else LossWeights(spans=(weight,))


def token_weights(tokens: TokenOffsets, rows: Sequence[RenderedText], trained: np.ndarray) -> np.ndarray | None:
    """The weight of each token in the loss, float32 `[N]`; None where no row has weights.

    Args:
        tokens: Of all rows, with their positions in the texts.
        rows: The rows.
        trained: Which tokens are trained as parts of answers, bool `[N]`.
    """
    if all(row.weights is None for row in rows):
        return None
    begins = np.cumsum([0, *(len(row.text) for row in rows)]).tolist()
    spans: list[tuple[int, int, float]] = []
    excluded: list[tuple[int, int, float]] = []
    for begin, row in zip(begins, rows, strict=False):
        given = row.weights or LossWeights(spans=(1.0,) * len(row.trained_spans))
        pairs = sorted(zip(row.trained_spans, given.spans, strict=True))
        spans += [(begin + start, begin + end, weight) for (start, end), weight in pairs]
        excluded += [(begin + start, begin + end, 0.0) for start, end in sorted(given.excluded)]
    prompt = np.array([row.weights.prompt if row.weights else 0.0 for row in rows], dtype=np.float32)
    found = np.repeat(prompt, tokens.lengths)
    if excluded:
        span = _last_span_before(tokens.ends, excluded)
        stops = np.array([stop for _, stop, _ in excluded])
        found[(span >= 0) & (stops[span] > tokens.starts)] = 0
    first = np.cumsum(tokens.lengths) - tokens.lengths
    found[first[tokens.lengths > 0]] = 0  # nothing predicts it
    values = np.array([weight for *_, weight in spans], dtype=np.float32)
    if trained.any():
        # A token with characters of two turns has the weight of the later one.
        found[trained] = values[_last_span_before(tokens.ends[trained], spans)]
    return found


def given_weights(rows: Sequence[tuple[RenderedText, np.ndarray]]) -> np.ndarray | None:
    """The weight of each token of rows of token ids, float32 `[N]`; None where no row has one.

    Args:
        rows: Each row, and which of its tokens are trained, bool `[T]`: only these have its weight.
    """
    own = (None if row.weights is None else trained * np.float32(row.weights.spans[0]) for row, trained in rows)
    labels = (np.where(trained, 0, IGNORED) for _, trained in rows)
    return joined_weights(list(zip(own, labels, strict=True)))


def joined_weights(rows: Sequence[tuple[np.ndarray | None, np.ndarray]]) -> np.ndarray | None:
    """The weights of rows, each with its labels, concatenated; None where no row has any."""
    if all(weights is None for weights, _ in rows):
        return None
    return np.concatenate(
        [(labels != IGNORED).astype(np.float32) if weights is None else weights for weights, labels in rows]
    )


def _last_span_before(ends: np.ndarray, spans: Sequence[tuple[int, int, float]]) -> np.ndarray:
    """For each token, by its end, the index of the last span that begins before it; -1 for none."""
    return np.searchsorted(np.array([start for start, *_ in spans]), ends, side="left") - 1


def _product(first: float, second: float) -> float:
    product = first * second
    if product and not SMALLEST <= product <= LARGEST:
        raise RowRefused(
            "bad_weight", f"a weight of {product:g} is outside of what can be computed, {SMALLEST:g} to {LARGEST:g}"
        )
    if first and second and not product:
        raise RowRefused("bad_weight", f"a weight of {first:g} times {second:g} is too small to be computed")
    return product
