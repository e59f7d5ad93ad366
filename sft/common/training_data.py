"""The data of a run, as the trainer receives it. Frozen; change it with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sft.common.data_records import DataReport, RowPreview
from sft.common.shown_rows import SamplePrompt, ScoredPrompt

if TYPE_CHECKING:  # the annotations below cost nothing at run time: floor 0 does not import it
    import numpy as np


class RowDataset(Protocol):
    """Prepared rows, by index."""

    @property
    def lengths(self) -> "np.ndarray":
        """Tokens of each row, int64 `[num_rows]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> "Mapping[str, np.ndarray]": ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """Input of the trainer. A row of both datasets is `{"input_ids": ..., "labels": ...}`, int32 `[T]` each."""

    train: "RowDataset"
    """With a `stream`, only the rows that were examined in advance."""
    validation: "RowDataset | None"
    report: DataReport
    validation_sets: "Mapping[str, RowDataset]" = field(default_factory=dict)
    """The rows of `validation` by their sets, in the same order; empty where the only set has no name."""
    test_sets: "Mapping[str, RowDataset]" = field(default_factory=dict)
    """By name; that of a set without a name is `test`."""
    forgetting_sets: "Mapping[str, RowDataset]" = field(default_factory=dict)
    """By name; that of a set without a name is `forgetting`."""
    scored: "Mapping[str, tuple[ScoredPrompt, ...]]" = field(default_factory=dict)
    """Rows whose answers are scored, by set: `validation`, `validation chats`, `test`, ..."""
    is_chat: bool = True
    """Whether any training row is a conversation; otherwise all are plain texts."""
    sample_prompts: tuple[SamplePrompt, ...] = ()
    previews: tuple[RowPreview, ...] = ()
    stream: "Callable[[int, Callable[[np.ndarray], np.ndarray]], Iterator[Any]] | None" = None
    """Training rows from a slot on, for the slots that a function selects, prepared on the fly."""

    locate_row: "Callable[[int], str] | None" = None
    """Origin of a training row as `file:line`, by its index in `train`."""

    @property
    def num_train_rows(self) -> int | None:
        """Rows per epoch; None for a stream."""
        return None if self.stream is not None else len(self.train)
