"""Records of rows, splits and datasets that pass between packages. Frozen; change one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft.common.given_tokens import GivenTokens
from sft.common.shown_rows import Segment
from sft.common.weight_records import LossWeights, WeightReport

IGNORED = -100
"""Label of tokens that are excluded from the loss, as in torch and transformers."""
FEW_VALIDATION_ROWS = 10
"""With fewer validation rows, single rows decide the loss, and sequence accuracy moves in steps of 10 % and more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSource:
    """Origin of a row: file (or dataset) name and line (or row number, from 1)."""

    file: str
    line: int
    part: int = 0
    """Its place, from 1, among the rows that `row_function` made of that row; 0 if it is that row itself."""

    def __str__(self) -> str:
        made = f" (made row {self.part})" if self.part else ""
        return f"{self.file}:{self.line}{made}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRow:
    """A row as read: its fields, or why it could not be read."""

    source: RowSource
    record: Mapping[str, Any] | None = None
    problem: "RowProblem | None" = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RowProblem:
    """Why a row cannot be used: a stable name for counting, and a message."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """A training example before rendering: chat `messages`, plain `text`, or `tokens`."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] | None = None
    text: str | None = None
    tokens: GivenTokens | None = None
    untrained: frozenset[int] = frozenset()
    """Indices of assistant messages that the row excludes from training."""
    weight: float = 1.0
    """Share of its tokens in the loss, relative to other rows."""
    message_weights: Mapping[int, float] = field(default_factory=dict)
    """Index of an assistant message -> its own weight, where that is not 1; 0 if the row says not to train it."""
    other_keys: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Index of a message -> its further keys, which only a chat template may read."""
    unread_keys: tuple[str, ...] = ()
    """Keys of its messages that nothing reads."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template beside messages and tools."""
    changes: tuple[str, ...] = ()
    """What the settings changed about its messages."""

    @property
    def is_chat(self) -> bool:
        """Whether it has messages, and is rendered by a chat template."""
        return self.text is None and self.tokens is None


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedText:
    """Text that the model receives, and its trained character spans `[start, end)`; or `tokens` and no text."""

    text: str
    trained_spans: tuple[tuple[int, int], ...]
    quoted: tuple[tuple[int, int], ...] = ()
    """Spans of control tokens that are ordinary characters."""
    notes: tuple[str, ...] = ()
    """What the template omitted from the text: `thoughts_left_out`, `tools_left_out`, ..."""
    unread_keys: tuple[str, ...] = ()
    """Keys of its messages that neither the program nor the template reads."""
    tokens: GivenTokens | None = None
    weights: LossWeights | None = None
    """None where every trained token counts once, and no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedRow:
    """A row that was skipped."""

    source: RowSource
    problem: RowProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRows:
    """Used rows that have something in common, by its name, and the first of them."""

    name: str
    rows: int
    examples: tuple[RowSource, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRemarks:
    """What used rows contain that a user may not expect, each kind by name. A held-out validation split has none: its
    rows are counted with the training rows."""

    unread_keys: tuple[NamedRows, ...] = ()
    """Message keys that neither the program nor the chat template reads."""
    control_tokens: tuple[NamedRows, ...] = ()
    """Control tokens (`<|im_end|>`) in contents."""
    split_tokens: tuple[NamedRows, ...] = ()
    """Tokens with supervised and other characters, which are trained."""
    changes: tuple[NamedRows, ...] = ()
    """Rows that were split, shortened, or freed of padding, or have another system prompt than the data."""
    template_kwargs: tuple[NamedRows, ...] = ()
    """Arguments with which rows were rendered, where there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """Counts of one source of a split, before `weight` is applied."""

    name: str
    """File, folder, glob or dataset name, as in the settings."""
    format_name: str
    files: tuple[str, ...]
    rows_read: int
    rows_used: int
    rows_dropped: Mapping[str, int]
    """Reason -> rows."""
    pieces: int = 0
    """See `SplitReport`."""
    weight: float = 1.0
    """How often each row is used per epoch."""
    probability: float | None = None
    """With which the next row is taken from this source; None where rows are taken by `weight`."""
    rows_an_epoch: int = 0
    rows_made: int = 0
    """See `SplitReport`."""
    unused_columns: tuple[str, ...] = ()

    @property
    def share(self) -> str:
        """Its weight or probability, for a line of text."""
        return f"weight {self.weight:g}" if self.probability is None else f"probability {self.probability:g}"

    @property
    def share_figure(self) -> str:
        """The same for a column of weights."""
        return self.share.removeprefix("weight ")


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthReport:
    """Row lengths in tokens before truncation, over all rows that could be tokenized, including too long ones.

    With `max_seq_length` set to `p90`, for example, 90 % of the rows are not truncated.
    """

    median: int
    p90: int
    p95: int
    p99: int
    longest: int
    bin_edges: tuple[int, ...] = ()
    """Bin edges of a histogram: bin `i` counts rows with `bin_edges[i] <= length < bin_edges[i + 1]`."""
    bin_counts: tuple[int, ...] = ()
    """Rows in each bin. Their sum is the number of rows that the percentiles describe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """Counts of one split (train or validation) in rows and tokens. `weight` affects only the counts per epoch."""

    sources: tuple[SourceReport, ...]
    rows_read: int
    rows_used: int
    rows_dropped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows. `rows_read == rows_used + sum of these`, always."""
    rows_made: int = 0
    """Of the rows read, those that `row_function` made beyond one of a row: the sources have this many less."""
    dropped_examples: tuple[DroppedRow, ...] = ()
    """The first skipped rows of each reason, in reading order."""
    lengths: LengthReport | None = None
    """None if no row could be tokenized."""
    rows_too_long: int = 0
    """Rows longer than `max_seq_length`, truncated or dropped by `on_too_long`. Sum of the next three counts."""
    rows_that_lose_the_answer: int = 0
    """Too long rows that keep no supervised tokens after truncation."""
    rows_that_lose_the_end: int = 0
    """Too long rows that lose some supervised tokens, including the end token."""
    rows_that_lose_only_prompt: int = 0
    """Too long rows that lose no supervised tokens."""
    rows_split: int = 0
    """Used rows that were too long and are trained in pieces, each as a row of its own. The next counts are in rows."""
    pieces: int = 0
    """The pieces of these rows."""
    untrained_pieces: int = 0
    """Further pieces of these rows, which are left out since they have no supervised token."""
    rows_shortened: int = 0
    """Used conversations that were too long and are trained from a later turn on."""
    rows_with_trained_end: int = 0
    """Used rows with a supervised end token (of the tokenizer or the chat template)."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Note of the renderer -> used rows with this note (see `RenderedText.notes`)."""
    remarks: RowRemarks = RowRemarks()
    remarks_include_validation: bool = False
    """Whether the remarks also count the rows that were held out for validation."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_row: int = 0
    """Tokens of the longest used row, after truncation."""
    tokens_an_epoch: int = 0
    """Tokens per epoch, weighted by `weight`; the next field counts the supervised ones."""
    supervised_tokens_an_epoch: int = 0
    duplicates: int = 0
    """Used rows whose conversation occurs earlier in the split, ignoring case and white space."""
    duplicate_examples: tuple[tuple[RowSource, RowSource], ...] = ()
    """The first duplicates, each with the row that it repeats."""
    weights: WeightReport | None = None
    """None where every supervised token counts once in the loss, and no other."""

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
    def is_too_small_to_judge(self) -> bool:
        """Whether a loss or accuracy of these rows depends on single rows."""
        return self.rows_used < FEW_VALIDATION_ROWS

    @property
    def supervised_share(self) -> float:
        """Share of supervised tokens, between 0 and 1."""
        return self.supervised_tokens / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SetReport:
    """Counts of an evaluation set: a named part of the validation rows, or rows that are only evaluated at the ends."""

    kind: str
    """`validation`, `test` or `forgetting`."""
    name: str
    split: SplitReport
    leakage: int = 0
    """Its rows whose conversation also occurs in the training data, ignoring case and white space."""
    leakage_examples: tuple[tuple[RowSource, RowSource], ...] = ()

    @property
    def title(self) -> str:
        """For messages: `test`, or `test chats` where it has a name."""
        return self.kind if self.name == self.kind else f"{self.kind} {self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """All counts of the data. `rows_read == rows_used + sum(rows_dropped.values())` always holds."""

    train: SplitReport
    validation: SplitReport | None = None
    leakage: int = 0
    """Validation rows whose conversation also occurs in the training data, ignoring case and white space."""
    leakage_examples: tuple[tuple[RowSource, RowSource], ...] = ()
    """The first of them: the validation row and the training row that it repeats."""
    is_complete: bool = True
    """False for streamed data, of which only the first rows were examined."""
    sets: tuple[SetReport, ...] = ()
    """Named validation sets, whose rows `validation` counts together, and the sets of `test_file` and
    `forgetting_check`."""

    @property
    def splits(self) -> dict[str, SplitReport]:
        """By name: `train`, `validation`, and the other sets by their titles. Every row is in one of them."""
        found = {"train": self.train}
        if self.validation is not None:
            found["validation"] = self.validation
        return found | {one.title: one.split for one in self.sets if one.kind != "validation"}

    @property
    def rows_read(self) -> int:
        return sum(split.rows_read for split in self.splits.values())

    @property
    def rows_used(self) -> int:
        return sum(split.rows_used for split in self.splits.values())

    @property
    def rows_dropped(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split in self.splits.values():
            for reason, count in split.rows_dropped.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class RowPreview:
    """A training row as the model receives it, in segments; or why it is skipped."""

    number: int
    """Number among the training rows in reading order, from 1."""
    source: RowSource
    segments: tuple[Segment, ...] = ()
    """The row's text after truncation, in parts."""
    num_tokens: int = 0
    num_supervised: int = 0
    was_truncated: bool = False
    changes: tuple[str, ...] = ()
    """What was changed of the row. A row that is split is shown whole."""
    problem: RowProblem | None = None
