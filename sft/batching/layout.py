"""Rows to the tensors of a micro-batch. The layout decides nothing: which tokens are trained is in the rows.

Shapes: `B` rows (documents), `T` tokens of the longest row, `N` tokens of all rows, `S` supervised positions.

Beside the inputs of the model (`MODEL_INPUTS`), both layouts return where the `S` tokens to predict are:

- `label_positions` int64 `[S]`: the positions that predict them, counted through the tokens of the layout, row by row.
- `targets` int64 `[S]`: the tokens to predict.
- `target_weights` float32 `[S]` and `is_answer` bool `[S]`: where targets count unequally (see `sft.batching.targets`).
- `target_rows` int64 `[S]`: the row of each, from 0.
- `token_weights` float32 `[N]`, `N` the computed tokens: where they are asked for (see `sft.batching.token_weights`).
- `counts`: a `BatchCounts` of plain numbers, so that no GPU has to be synchronized for them.
- `rows`: the rows themselves, each with its `batch_index`: if the device runs out of memory, they are laid out again in
  smaller chunks (`sft.batching.chunks`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from sft.batching.prefixes import cut_into_pieces, find_owners
from sft.batching.targets import target_positions, target_tokens, weigh_targets
from sft.batching.token_weights import token_weights
from sft.common.data_records import IGNORED
from sft.common.training_data import RowDataset

Row = Mapping[str, Any]
"""`input_ids` and `labels`, integers `[T]` each, and `weights`, float32 `[T]`, where it has any in the loss; in a
micro-batch `batch_index` too, and `number` except in fillers."""

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "shared_prefixes",
    "document_lengths",
    "seq_idx",
)
"""Keys of a batch that are passed to the model where they are present.

The names are those of transformers, except for `shared_prefixes` and `document_lengths`, which the model passes through
to the attention."""

MIN_BOUNDARIES = 16
"""Least number of document boundaries in a batch of fixed size: fewer would only cause more compiled shapes."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The items of a batch that are passed to the model."""
    return {key: batch[key] for key in MODEL_INPUTS if key in batch}


class BatchCounts(TypedDict):
    """Counts of a micro-batch. Rows without a supervised token (fillers) count in `computed` alone."""

    rows: int
    tokens: int
    supervised: int
    computed: int
    """Tokens that the model computes: padding and fillers included, shared leading tokens once."""
    squares: int
    """Sum of the squared lengths of the rows, to which the cost of attention is proportional."""
    weight: float
    """Sum of the targets' weights in the loss; the supervised tokens where all count once."""
    weighted_rows: int
    """Rows whose targets do not all count once."""


class SupervisedRows(TorchDataset[Row]):
    """A dataset's rows; a negative index `-row - 1` is that row with all labels ignored (a filler)."""

    def __init__(self, dataset: RowDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> Row:
        """A row by its number, or by (number, index of its pack in the micro-batch)."""
        if isinstance(index, tuple):
            return {**self[index[0]], "batch_index": index[1]}
        if index >= 0:
            return {**self._dataset[index], "number": index}
        row = self._dataset[-index - 1]
        return {"input_ids": row["input_ids"], "labels": np.full_like(row["labels"], IGNORED)}


class PaddedCollator:
    """Pads rows on the right to the longest one.

    Returns `input_ids` and `attention_mask` int64 `[B, T]`, and `position_ids` alike where they are asked for: 0 in
    padding. `kept_columns` int64 `[K]` are the columns in which any row
    has a supervised position, `kept_positions` int64 `[S]` the supervised positions counted through these columns
    alone: for a model whose logits must be taken as it returns them.
    """

    def __init__(self, pad_token_id: int, *, with_positions: bool = False, weighs_tokens: bool = False):
        self.pad_token_id = pad_token_id
        self.with_positions = with_positions
        self.weighs_tokens = weighs_tokens

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids[index, :length] = row["input_ids"]
            attention_mask[index, :length] = 1
        starts = np.arange(len(rows), dtype=np.int64) * width
        supervision = _supervision(rows, starts, num_computed=input_ids.size, weighs_tokens=self.weighs_tokens)
        columns, indices = np.unique(supervision["label_positions"].numpy() % width, return_inverse=True)
        row_starts = supervision["target_rows"].numpy() * len(columns)
        positions = {"position_ids": torch.from_numpy(attention_mask * np.arange(width))} if self.with_positions else {}
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            **positions,
            **supervision,
            "kept_columns": torch.from_numpy(columns),
            "kept_positions": torch.from_numpy(row_starts + indices),
            "rows": _with_batch_index(rows),
        }

    def for_chunks(self, num_chunks: int) -> PaddedCollator:
        """The collator for one of `num_chunks` chunks of a micro-batch: the same."""
        return self


@dataclass(frozen=True, slots=True)
class FlatCollator:
    """Packs rows in one row without padding; each of them is a document of that row.

    Returns `input_ids` and `position_ids` int64 `[1, N]`, positions starting at 0 in each document, and the document
    boundaries as flash attention takes them: `cu_seq_lens_q` = `cu_seq_lens_k` int32 `[B + 1]`, and `max_length_q` =
    `max_length_k`, an upper bound of their lengths. Attention must not cross the boundaries.

    Where leading tokens are shared, they occur once: `N` is smaller, the boundaries remain those of complete documents,
    and `shared_prefixes` describes how to assemble these.
    """

    pad_token_id: int
    """The token that a batch of fixed size is filled with."""
    _: KW_ONLY
    shares_prefixes: bool = False
    """Lay out leading tokens that rows share once."""
    fixed_tokens: int | None = None
    """Fill every batch up to this many tokens with documents without supervised tokens, so that a compiled model sees
    few shapes: empty documents fill the boundaries up to a power of two too."""
    max_seq_length: int | None = None
    """The bound of lengths to report; None reports each batch's longest document."""
    lists_lengths: bool = False
    """Return `document_lengths` too, a list of `B` numbers, for attention that takes documents one by one on a GPU."""
    numbers_documents: bool = False
    """Return `seq_idx` too, int32 `[1, N]`, the number of each token's document: kernels of convolutions and state
    spaces take it. Not with shared prefixes."""
    weighs_tokens: bool = False
    """Return `token_weights` too."""

    def for_chunks(self, num_chunks: int) -> FlatCollator:
        """The collator for one of `num_chunks` chunks of a micro-batch; a fixed size is divided."""
        if self.fixed_tokens is None:
            return self
        return replace(self, fixed_tokens=max(-(-self.fixed_tokens // num_chunks), self.max_seq_length or 1))

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        given = _with_batch_index(rows)
        rows = [*rows, *self._fillers(sum(len(row["input_ids"]) for row in rows))]
        owners, borrowed = find_owners(rows) if self.shares_prefixes else ([], [0] * len(rows))
        lengths = np.array([len(row["input_ids"]) for row in rows])
        skipped = np.array(borrowed)
        computed = lengths - skipped
        starts = np.cumsum(computed) - computed
        # Positions count from the start of the document, whether its first tokens are its own or borrowed.
        positions = np.arange(computed.sum()) + np.repeat(skipped - starts, computed)
        input_ids = np.concatenate([row["input_ids"][skip:] for row, skip in zip(rows, borrowed, strict=True)])
        max_length = self.max_seq_length or int(lengths.max())
        cu_seq_lens = torch.from_numpy(self._boundaries(lengths))
        shared = {"shared_prefixes": cut_into_pieces(lengths.tolist(), owners, borrowed)} if any(borrowed) else {}
        return {
            "input_ids": torch.from_numpy(input_ids.astype(np.int64, copy=False))[None],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": max_length,
            "max_length_k": max_length,
            **shared,
            **({"document_lengths": lengths.tolist()} if self.lists_lengths else {}),
            **({"seq_idx": _numbers(lengths)} if self.numbers_documents else {}),
            **_supervision(
                rows,
                starts - skipped,
                num_computed=int(computed.sum()),
                weighs_tokens=self.weighs_tokens,
                sharing=(owners, borrowed) if any(borrowed) else ((), ()),
            ),
            "rows": given,
        }

    def _boundaries(self, lengths: np.ndarray) -> np.ndarray:
        """The start of each document and the end of the last one, int32."""
        boundaries = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=boundaries[1:])
        if self.fixed_tokens:
            boundaries = np.pad(boundaries, (0, padded_documents(len(lengths)) - len(lengths)), mode="edge")
        return boundaries

    def _fillers(self, num_tokens: int) -> list[Row]:
        """Documents without supervised tokens that fill a batch up to its fixed size, each within `max_seq_length`."""
        rest = (self.fixed_tokens or num_tokens) - num_tokens
        at_most = self.max_seq_length or rest
        lengths = [min(at_most, rest - start) for start in range(0, rest, at_most or 1)]
        return [
            {
                "input_ids": np.full(length, self.pad_token_id, dtype=np.int64),
                "labels": np.full(length, IGNORED, dtype=np.int64),
            }
            for length in lengths
        ]


def padded_documents(num_documents: int) -> int:
    """Documents of a batch of fixed size: one less than a power of two, the empty ones included."""
    return max(1 << num_documents.bit_length(), MIN_BOUNDARIES) - 1


def _numbers(lengths: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths))[None]


def _with_batch_index(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its index in the micro-batch: that of its pack where it has one, else its own."""
    return [{"batch_index": index, **row} for index, row in enumerate(rows)]


def _supervision(
    rows: Sequence[Row],
    starts: np.ndarray,
    *,
    num_computed: int,
    weighs_tokens: bool = False,
    sharing: tuple[Sequence[int], Sequence[int]] = ((), ()),
) -> dict[str, Any]:
    """The supervised positions of rows that start at `starts` `[B]` in the layout, and their weights if asked for.

    Position `t` predicts token `t + 1`, so the first token of a row is never a target.
    """
    found = [target_positions(row) for row in rows]
    numbers = np.array([len(positions) for positions in found])
    lengths = np.array([len(row["labels"]) for row in rows])
    positions = np.concatenate([positions + start for positions, start in zip(found, starts, strict=True)])
    targets = np.concatenate([target_tokens(row, positions) for row, positions in zip(rows, found, strict=True)])
    weighed = weigh_targets(rows, found)
    has_targets = numbers > 0
    weights = {}
    if weighs_tokens:
        owners, borrowed = sharing
        weights["token_weights"] = token_weights(
            starts, lengths, has_targets, num_computed, owners=owners, borrowed=borrowed
        )
    return {
        **weights,
        "label_positions": torch.from_numpy(positions.astype(np.int64, copy=False)),
        "targets": torch.from_numpy(targets.astype(np.int64)),
        "target_rows": torch.from_numpy(np.repeat(np.arange(len(rows)), numbers)),
        **weighed.tensors,
        "counts": BatchCounts(
            rows=int(has_targets.sum()),
            tokens=int(lengths[has_targets].sum()),
            supervised=weighed.num_supervised,
            computed=num_computed,
            squares=int((lengths[has_targets].astype(np.int64) ** 2).sum()),
            weight=weighed.weight,
            weighted_rows=weighed.num_weighted_rows,
        ),
    }
