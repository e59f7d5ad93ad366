"""Rendered text to `input_ids` and `labels`, by character positions.

Shapes: `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prompting.messages import RowRefused
from sft_types import RenderedText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not trained, as everywhere in torch and transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRow:
    """One row as the model sees it; both arrays int32, `[T]`."""

    input_ids: np.ndarray
    labels: np.ndarray
    was_truncated: bool
    lost_its_end: bool
    """Whether the last trained token was cut off: the end of the answer is not learned from this row."""

    @property
    def num_supervised(self) -> int:
        """Tokens that are predicted and trained; the first of a row has nothing to be predicted from."""
        return int((self.labels[1:] != IGNORED).sum())


def tokenize_rows(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[RenderedText], max_seq_length: int, *, is_chat: bool
) -> list[TokenizedRow | RowRefused]:
    """Tokenizes a batch of rendered rows.

    Chat text is complete as rendered, so nothing is added to it: no second begin-of-text. Plain text gets what the
    tokenizer itself adds (once), and the end-of-text token at its end, which is trained: without it a model never
    learns to stop.

    Returns:
        For each row its tokens, or why it has nothing left to train on.
    """
    if not rows:
        return []
    encoded = tokenizer(
        [row.text for row in rows],
        add_special_tokens=not is_chat,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    results: list[TokenizedRow | RowRefused] = []
    for row, ids, offsets in zip(rows, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        input_ids = np.asarray(ids, dtype=np.int32)
        trained = _trained_tokens(np.asarray(offsets, dtype=np.int64).reshape(-1, 2), row)
        if not is_chat:
            input_ids, trained = _complete_text(tokenizer, input_ids, trained)
        results.append(_cut(input_ids, trained, max_seq_length))
    return results


def _trained_tokens(offsets: np.ndarray, row: RenderedText) -> np.ndarray:
    """Which tokens stand for trained characters, `[T]` bool: those that overlap a span.

    A token without characters (begin-of-text that a tokenizer adds) is not trained.
    """
    starts, ends = offsets[:, 0].copy(), offsets[:, 1]
    for index in np.flatnonzero((starts == ends) & (ends > 0)):
        # Tokenizers that trim offsets (GPT-NeoX and its kin) leave nothing of a token that is all white space.
        starts[index] -= row.text[ends[index] - 1].isspace()
    trained = np.zeros(len(offsets), dtype=bool)
    for start, end in row.trained_spans:
        trained |= (starts < end) & (ends > start) & (ends > starts)
    return trained


def _complete_text(
    tokenizer: "PreTrainedTokenizerBase", input_ids: np.ndarray, trained: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Plain text with exactly one begin-of-text (if the tokenizer uses it) and one end-of-text."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if len(input_ids) > 1 and bos is not None and input_ids[0] == input_ids[1] == bos:
        input_ids, trained = input_ids[1:], trained[1:]
    if eos is None:
        return input_ids, trained
    if len(input_ids) == 0 or input_ids[-1] != eos:
        input_ids, trained = np.append(input_ids, np.int32(eos)), np.append(trained, True)
    else:
        trained = trained.copy()
        trained[-1] = True
    return input_ids, trained


def _cut(input_ids: np.ndarray, trained: np.ndarray, max_seq_length: int) -> TokenizedRow | RowRefused:
    labels = np.where(trained, input_ids, np.int32(IGNORED)).astype(np.int32)
    if not trained[1:].any():
        return RowRefused("nothing_to_train", "no token of it is trained")
    row = TokenizedRow(
        input_ids=input_ids[:max_seq_length],
        labels=labels[:max_seq_length],
        was_truncated=len(input_ids) > max_seq_length,
        lost_its_end=bool(trained[max_seq_length:].any()),
    )
    if row.num_supervised == 0:
        return RowRefused(
            "nothing_left_after_truncation",
            f"its {len(input_ids)} tokens are cut to max_seq_length {max_seq_length}, before the answer begins",
        )
    return row
