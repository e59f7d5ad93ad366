"""The records that pass between rooms. Frozen; change one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the annotations below cost nothing at run time: floor 0 imports neither library
    import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributedContext:
    """This process among all processes of the run."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    """The device of this process as torch spells it: `cpu`, `cuda:0`, `mps`."""

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0


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

    place_of: "Callable[[int], str] | None" = None
    """Where a training row stands, as `file:line`, by its number in `train`."""

    @property
    def num_train_rows(self) -> int | None:
        """Rows of an epoch; None for a stream."""
        return None if self.stream is not None else len(self.train)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The types that a run computes in."""

    weights: str
    """Type of the weights in memory (of the unquantized ones): `float32`, `bfloat16`, `float16`."""
    mixed: str
    """Autocast: `bf16`, `fp16` or `no`."""


class PackPattern(Protocol):
    """How rows share packs of one capacity (see `batching.packing`)."""

    capacity: int
    """Tokens of a pack at most."""
    num_packs: int

    @property
    def fill(self) -> float:
        """Share of the capacity that is used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How many rows an optimizer step sees, and how they are split."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    steps_per_epoch: int
    total_steps: int
    packs: PackPattern | None = None
    """Where rows are packed: the plan then counts packs wherever it says rows."""
    per_device_eval_batch_size: int = 8
    parts: int = 1
    """Parts in which a micro-batch is computed, since all of it at once ran out of memory."""
    asked: "Mapping[str, Any]" = field(default_factory=dict)
    """What the settings said of sizes."""

    @property
    def unit(self) -> str:
        """What is counted: `rows` or `packs`."""
        return "rows" if self.packs is None else "packs"

    @property
    def global_batch_size(self) -> int:
        """Rows (packs) an optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFootprint:
    """The model's size, as far as memory and speed depend on it."""

    num_parameters: int
    num_trainable_parameters: int
    weight_bytes: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    intermediate_size: int = 0
    """Width inside the feed-forward block; 0 where the model does not tell."""
    num_attention_heads: int = 0
    num_lookup_parameters: int = 0
    """Of the input embedding, where the output layer does not share it: looked up, never multiplied."""
    num_4bit_parameters: int = 0
    """How many of the parameters are held in 4 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Sums over every supervised token of a dataset, as means. `loss` in nats a token."""

    loss: float
    perplexity: float
    token_accuracy: float
    sequence_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model said to a prompt, and whether it ended by an end token (not where it was cut)."""

    text: str
    ended: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleAnswer:
    """A prompt as text and what the model said, before and after training."""

    prompt: str
    before: str
    after: str = ""
    reference: str | None = None
    before_ended: bool | None = None
    after_ended: bool | None = None
    """Whether the answer ended by its end token; None where that was not looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What `train` brings back. Times in seconds; speeds over the training steps alone, all ranks together."""

    status: str
    """`completed`, or `interrupted` where a signal ended it."""
    stopped_by: int = 0
    """Number of that signal; 0 for none."""
    steps: int
    epochs: float | None
    """None for a stream, in which they do not end."""
    loss: float | None
    seconds: float
    examples_per_second: float
    tokens_per_second: float
    supervised_tokens_per_second: float
    model_flops_per_second: float | None = None
    """Operations that the trained tokens cost by the usual formula (see `modeling.flops`)."""
    mfu: float | None = None
    """Those as a share of what all devices could do at most; None where that is not known (on CPU)."""
    peak_memory_bytes: int
    memory_share: float | None
    """Peak over the memory of the device (or of this process's share of RAM)."""
    rows_dropped: int = 0
    """Rows of a stream that could not be used, all ranks together."""
    bad_steps: int = 0
    """Steps whose update was left out, since their loss or gradient was no finite number."""
    memory_shortages: "Mapping[str, int]" = field(default_factory=dict)
    """How often memory ran out and smaller parts were taken, in `training` and `evaluation` (on this rank)."""
    eval_before: EvaluationResult | None = None
    eval_after: EvaluationResult | None = None
    samples: tuple[SampleAnswer, ...] = field(default_factory=tuple)
    last_checkpoint: str | None = None
