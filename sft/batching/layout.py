"""Rows to the tensors of a micro-batch. The layout decides nothing: what is trained stands in the rows.

Shapes: `B` rows (documents), `T` tokens of the longest row, `N` tokens of all rows, `S` supervised positions.

Both layouts give, beside what the model takes (`MODEL_INPUTS`), where the `S` tokens to be predicted stand:

- `label_positions` int64 `[S]`: the positions that predict them, counted through the laid out tokens, row by row.
- `targets` int64 `[S]`: the tokens that they have to predict.
- `target_rows` int64 `[S]`: the row of each, from 0.
- `counts`: a `BatchCounts` as plain numbers, so that nothing has to be asked of a GPU.
- `rows`: the rows themselves, each with its `place` in the micro-batch: should the device not hold all of them at once,
  they are laid out again in parts (`sft.batching.parts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from sft.batching.prefixes import cut_into_pieces, find_owners
from sft.common.data_records import RowDataset

IGNORED = -100
MODEL_INPUTS = (
    "input_ids", "attention_mask", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    "shared_prefixes",
)  # fmt: skip
"""What of a batch the model is called with, where it is there. The names are transformers' own but for the last, which
is handed on to the attention."""


FEWEST_BOUNDARIES = 16
"""Of a batch that is filled up: so small numbers need no shapes of their own."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model is called with."""
    return {key: batch[key] for key in MODEL_INPUTS if key in batch}


class BatchCounts(TypedDict):
    """What a micro-batch holds. Rows without a supervised token (fillers) count as laid out alone."""

    rows: int
    tokens: int
    supervised: int
    laid_out: int
    """Tokens that are computed: padding and fillers too, shared leading tokens once."""
    squares: int
    """Sum of the squares of the rows' lengths: what attention costs."""


class SupervisedRows(TorchDataset):
    """A dataset's rows, where a negative index `-row-1` is that row with every label ignored (a filler)."""

    def __init__(self, dataset: RowDataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int | tuple[int, int]) -> Mapping[str, Any]:
        """A row with its number, by that or by (number, place of its pack in the micro-batch)."""
        if isinstance(index, tuple):
            return {**self[index[0]], "place": index[1]}
        if index >= 0:
            return {**self._dataset[index], "number": index}
        row = self._dataset[-index - 1]
        return {"input_ids": row["input_ids"], "labels": np.full_like(row["labels"], IGNORED)}


class PaddedCollator:
    """Lays rows one under another, padded at the right to the longest.

    Gives `input_ids` and `attention_mask` int64 `[B, T]`. `kept_columns` int64 `[K]` are the columns in which any row
    has a supervised position, `kept_positions` int64 `[S]` these positions counted through the rows of those columns
    alone: for a model whose scores have to be taken as it gives them.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        width = max(len(row["input_ids"]) for row in rows)
        input_ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids[index, :length] = row["input_ids"]
            attention_mask[index, :length] = 1
        starts = np.arange(len(rows), dtype=np.int64) * width
        trained = _what_is_trained(rows, starts, laid_out=input_ids.size)
        columns, places = np.unique(trained["label_positions"].numpy() % width, return_inverse=True)
        row_starts = trained["target_rows"].numpy() * len(columns)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(attention_mask),
            **trained,
            "kept_columns": torch.from_numpy(columns),
            "kept_positions": torch.from_numpy(row_starts + places),
            "rows": _with_places(rows),
        }

    def for_parts(self, parts: int) -> "PaddedCollator":
        """The collator for a micro-batch in so many parts: the same."""
        return self


class FlatCollator:
    """Lays rows one after another in a single row, without padding: the documents of that row.

    Gives `input_ids` and `position_ids` int64 `[1, N]`, the positions beginning at 0 in each document, and the
    documents' boundaries as flash attention takes them: `cu_seq_lens_q` = `cu_seq_lens_k` int32 `[B + 1]`, and
    `max_length_q` = `max_length_k`, a bound of their lengths. Attention must keep to the boundaries.

    Where leading tokens are shared, they are laid out once: `N` is less, the boundaries remain those of whole
    documents, and `shared_prefixes` says how these are made up again.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        shares_prefixes: bool = False,
        fixed_tokens: int | None = None,
        longest: int | None = None,
    ):
        """Args:
        pad_token_id: what a batch is filled up with.
        shares_prefixes: lay out leading tokens that rows share once.
        fixed_tokens: fill every batch up to so many tokens, by documents with nothing to train, so that a compiled
            model sees few shapes: the boundaries, too, are filled up to a power of two, by empty documents.
        longest: the bound of lengths to tell; None tells each batch's own.
        """
        self.pad_token_id = pad_token_id
        self.shares_prefixes = shares_prefixes
        self.fixed_tokens = fixed_tokens
        self.longest = longest

    def for_parts(self, parts: int) -> "FlatCollator":
        """The collator for a micro-batch in so many parts: of a fixed size, each has its share."""
        if self.fixed_tokens is None:
            return self
        return FlatCollator(
            self.pad_token_id,
            shares_prefixes=self.shares_prefixes,
            fixed_tokens=max(-(-self.fixed_tokens // parts), self.longest or 1),
            longest=self.longest,
        )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        given = _with_places(rows)
        rows = [*rows, *self._filling(sum(len(row["input_ids"]) for row in rows))]
        owners, borrowed = find_owners(rows) if self.shares_prefixes else (None, [0] * len(rows))
        lengths = np.array([len(row["input_ids"]) for row in rows])
        skipped = np.array(borrowed)
        laid_out = lengths - skipped
        starts = np.cumsum(laid_out) - laid_out
        # A position counts from its document's beginning, be that laid out here or borrowed.
        positions = np.arange(laid_out.sum()) + np.repeat(skipped - starts, laid_out)
        input_ids = np.concatenate([row["input_ids"][skip:] for row, skip in zip(rows, borrowed, strict=True)])
        longest = self.longest or int(lengths.max())
        cu_seq_lens = torch.from_numpy(self._boundaries(lengths))
        shared = {"shared_prefixes": cut_into_pieces(lengths.tolist(), owners, borrowed)} if any(borrowed) else {}
        return {
            "input_ids": torch.from_numpy(input_ids.astype(np.int64, copy=False))[None],
            "position_ids": torch.from_numpy(positions)[None],
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": longest,
            "max_length_k": longest,
            **shared,
            **_what_is_trained(rows, starts - skipped, laid_out=int(laid_out.sum())),
            "rows": given,
        }

    def _boundaries(self, lengths: np.ndarray) -> np.ndarray:
        """Where each document begins, and the last one ends: int32."""
        boundaries = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=boundaries[1:])
        if self.fixed_tokens:
            count = max(1 << len(lengths).bit_length(), FEWEST_BOUNDARIES)
            boundaries = np.pad(boundaries, (0, count - len(boundaries)), mode="edge")
        return boundaries

    def _filling(self, num_tokens: int) -> list[dict[str, np.ndarray]]:
        """Documents with nothing to train that bring a batch to its fixed size, none longer than `longest`."""
        rest = (self.fixed_tokens or num_tokens) - num_tokens
        at_most = self.longest or rest
        lengths = [min(at_most, rest - start) for start in range(0, rest, at_most or 1)]
        return [
            {
                "input_ids": np.full(length, self.pad_token_id, dtype=np.int64),
                "labels": np.full(length, IGNORED, dtype=np.int64),
            }
            for length in lengths
        ]


def _with_places(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows, each with its place: its pack's, where it is in one, else its own."""
    return [{"place": place, **row} for place, row in enumerate(rows)]


def _what_is_trained(rows: Sequence[Mapping[str, Any]], starts: np.ndarray, *, laid_out: int) -> dict[str, Any]:
    """The supervised positions of rows that begin at `starts` `[B]` among the laid out tokens.

    Position `t` predicts token `t + 1`, so a row's first token is never a target.
    """
    found = [np.flatnonzero(row["labels"][1:] != IGNORED) for row in rows]
    numbers = np.array([len(places) for places in found])
    lengths = np.array([len(row["labels"]) for row in rows])
    positions = np.concatenate([places + start for places, start in zip(found, starts, strict=True)])
    targets = np.concatenate([row["labels"][1:][places] for row, places in zip(rows, found, strict=True)])
    trained = numbers > 0
    return {
        "label_positions": torch.from_numpy(positions.astype(np.int64, copy=False)),
        "targets": torch.from_numpy(targets.astype(np.int64)),
        "target_rows": torch.from_numpy(np.repeat(np.arange(len(rows)), numbers)),
        "counts": BatchCounts(
            rows=int(trained.sum()),
            tokens=int(lengths[trained].sum()),
            supervised=int(numbers.sum()),
            laid_out=laid_out,
            squares=int((lengths[trained].astype(np.int64) ** 2).sum()),
        ),
    }
