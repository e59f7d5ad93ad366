"""Records of rows, splits and datasets that pass between packages. Frozen; change one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the annotations below cost nothing at run time: floor 0 imports neither library
    import numpy as np

IGNORED = -100
"""The label of a token that is not trained, as everywhere in torch and transformers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSource:
    """Where a row stands: a file (or dataset) name and a line (or row number), both as a person would count."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """One row as read: its fields, or the reason why it has none."""

    source: RowSource
    record: Mapping[str, Any] | None = None
    problem: "RowProblem | None" = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RowProblem:
    """Why a row cannot be used: a stable name to count by, and a sentence for a person."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One training example before rendering: chat `messages`, or plain `text` where there are no turns."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] | None = None
    text: str | None = None
    untrained: frozenset[int] = frozenset()
    """Indices of the assistant's messages that the row itself leaves out of training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedText:
    """The text that the model sees, and the character spans `[start, end)` of it that are trained."""

    text: str
    trained_spans: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    """What the template left out of the text and a person should know of: `thoughts_left_out`, `tools_left_out`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedRow:
    """A row that was counted out."""

    source: RowSource
    problem: RowProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """The counts of one source of a split, before `weight` repeats or thins its rows."""

    name: str
    """A file, a folder, a glob, or a dataset's name, as the settings give it."""
    format_name: str
    files: tuple[str, ...]
    rows_read: int
    rows_used: int
    rows_dropped: Mapping[str, int]
    """Reason -> rows."""
    weight: float = 1.0
    """How often an epoch takes each of its rows."""
    rows_an_epoch: int = 0
    unused_columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthReport:
    """Tokens of whole rows, before anything is cut: of every row that could be tokenized, the too long ones included.

    Each percentile is the length of a row: `max_seq_length` set to it keeps that share of the rows whole.
    """

    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    bin_edges: tuple[int, ...] = ()
    """Bounds of a histogram, one more than there are bins: a bin holds `bin_edges[i] <= length < bin_edges[i + 1]`."""
    bin_counts: tuple[int, ...] = ()
    """Rows in each bin; together all rows that the percentiles are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """The counts of one split (train or validation); rows and tokens. `weight` changes only those of an epoch."""

    sources: tuple[SourceReport, ...]
    rows_read: int
    rows_used: int
    rows_dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows. `rows_read == rows_used + sum of these`, always."""
    dropped_examples: tuple[DroppedRow, ...] = ()
    """The first dropped rows of each reason, in the order in which they were read."""
    lengths: LengthReport | None = None
    """None where no row could be tokenized."""
    rows_too_long: int = 0
    """Rows with more tokens than `max_seq_length`: cut or dropped as `on_too_long` says. The next three are parts."""
    rows_that_lose_the_answer: int = 0
    """Too long rows in which no trained token is left after the cut."""
    rows_that_lose_the_end: int = 0
    """Too long rows in which a part of what is trained is cut off, the end token with it."""
    rows_that_lose_only_prompt: int = 0
    """Too long rows that lose nothing that is trained."""
    rows_with_trained_end: int = 0
    """Rows used in which an end token (of the tokenizer, or of the chat template) is trained."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Note of the renderer -> rows used that carry it (see `RenderedText.notes`)."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_row: int = 0
    """Tokens of the longest row used, after truncation."""
    tokens_an_epoch: int = 0
    """Tokens of all rows, each as often as its source's weight takes it; and so for the supervised ones."""
    supervised_tokens_an_epoch: int = 0
    duplicates: int = 0
    """Rows used whose conversation stands earlier in the same split, letter case and white space aside."""
    duplicate_examples: tuple[tuple[RowSource, RowSource], ...] = ()
    """The first of them, each with the row that it repeats."""

    @property
    def format_name(self) -> str:
        return self.sources[0].format_name

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file for source in self.sources for file in source.files)

    @property
    def num_dropped(self) -> int:
        return sum(self.rows_dropped.values())

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that are trained, between 0 and 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """Every count a person may ask about. `rows_read == rows_used + sum(rows_dropped.values())`, always."""

    train: SplitReport
    validation: SplitReport | None = None
    leakage: int = 0
    """Validation rows whose conversation stands in the training rows too, letter case and white space aside."""
    leakage_examples: tuple[tuple[RowSource, RowSource], ...] = ()
    """The first of them: the validation row, and the training row that it repeats."""
    is_complete: bool = True
    """False for streamed data, of which only the first rows were looked at."""

    @property
    def splits(self) -> tuple[SplitReport, ...]:
        return (self.train,) if self.validation is None else (self.train, self.validation)

    @property
    def rows_read(self) -> int:
        return sum(split.rows_read for split in self.splits)

    @property
    def rows_used(self) -> int:
        return sum(split.rows_used for split in self.splits)

    @property
    def rows_dropped(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split in self.splits:
            for reason, count in split.rows_dropped.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of a row's text that is trained throughout, or not at all."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPreview:
    """One training row as the model sees it, piece by piece; or why it is left out."""

    number: int
    """Place among the training rows as they are read, from 1."""
    source: RowSource
    segments: tuple[Segment, ...] = ()
    """What is left after truncation; their texts together are the row's text."""
    num_tokens: int = 0
    num_supervised: int = 0
    was_truncated: bool = False
    problem: RowProblem | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePrompt:
    """A prompt to answer before and after training, and the answer that the data gives, where it gives one."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] | None = None
    text: str | None = None
    reference: str | None = None

    @property
    def shown(self) -> str:
        """The prompt as a person would read it: the text, or the last message."""
        return self.text if self.text is not None else str(self.messages[-1]["content"]) if self.messages else ""


class RowDataset(Protocol):
    """Prepared rows by number."""

    @property
    def lengths(self) -> "np.ndarray":
        """Tokens of each row, int64 `[num_rows]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> "Mapping[str, np.ndarray]": ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What the trainer consumes. A row of both datasets is `{"input_ids": ..., "labels": ...}`, int32 `[T]` each."""

    train: "RowDataset"
    """With a `stream`, only the rows that were looked at beforehand."""
    validation: "RowDataset | None"
    report: DataReport
    is_chat: bool = True
    """Whether there are conversations among the training rows; else all of them are plain texts."""
    sample_prompts: tuple[SamplePrompt, ...] = ()
    previews: tuple[RowPreview, ...] = ()
    stream: "Callable[[int, Callable[[np.ndarray], np.ndarray]], Iterator[Any]] | None" = None
    """Training rows from a slot on, for the slots that a function chooses, prepared while they are read."""

    locate_row: "Callable[[int], str] | None" = None
    """File and line of a training row, as `file:line`, by its number in `train`."""

    @property
    def num_train_rows(self) -> int | None:
        """Rows of an epoch; None for a stream."""
        return None if self.stream is not None else len(self.train)
