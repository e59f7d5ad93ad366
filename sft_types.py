"""The records that pass between rooms. Frozen; change one with `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the annotations below cost nothing at run time: floor 0 imports neither library
    import torch
    from datasets import Dataset


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedText:
    """The text that the model sees, and the character spans `[start, end)` of it that are trained."""

    text: str
    trained_spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DroppedRow:
    """A row that was counted out."""

    source: RowSource
    problem: RowProblem


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """The counts of one split (train or validation); rows and tokens."""

    format_name: str
    files: tuple[str, ...]
    rows_read: int
    rows_used: int
    dropped: tuple[DroppedRow, ...] = ()
    rows_truncated: int = 0
    rows_without_their_end: int = 0
    """Rows used whose answer was cut, so that its end is not trained."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_row: int = 0
    """Tokens of the longest row used, after truncation."""

    @property
    def rows_dropped(self) -> dict[str, int]:
        """Dropped rows by reason."""
        counts: dict[str, int] = {}
        for row in self.dropped:
            counts[row.problem.reason] = counts.get(row.problem.reason, 0) + 1
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """Every count a person may ask about. `rows_read == rows_used + sum(rows_dropped.values())`, always."""

    train: SplitReport
    validation: SplitReport | None = None

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    """What the trainer consumes. Both datasets have the columns `input_ids` and `labels` (int32 lists, `[T]`)."""

    train: "Dataset"
    validation: "Dataset | None"
    collator: "Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]"
    report: DataReport
    sample_prompts: tuple[SamplePrompt, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The types that a run computes in."""

    weights: str
    """Type of the weights in memory (of the unquantized ones): `float32`, `bfloat16`, `float16`."""
    mixed: str
    """Autocast: `bf16`, `fp16` or `no`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How many rows an optimizer step sees, and how they are split."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    steps_per_epoch: int
    total_steps: int

    @property
    def global_batch_size(self) -> int:
        """Rows (an optimizer step)."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Sums over every supervised token of a dataset, as means. `loss` in nats a token."""

    loss: float
    perplexity: float
    token_accuracy: float
    sequence_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleAnswer:
    """A prompt as text and what the model said, before and after training."""

    prompt: str
    before: str
    after: str = ""
    reference: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """What `train` brings back. Times in seconds; speeds over the training steps alone, all ranks together."""

    status: str
    """`completed`, or `interrupted` where a signal ended it."""
    steps: int
    epochs: float
    loss: float | None
    seconds: float
    examples_per_second: float
    tokens_per_second: float
    supervised_tokens_per_second: float
    peak_memory_bytes: int
    memory_share: float | None
    """Peak over the memory of the device (or of this process's share of RAM)."""
    eval_before: EvaluationResult | None = None
    eval_after: EvaluationResult | None = None
    samples: tuple[SampleAnswer, ...] = field(default_factory=tuple)
    last_checkpoint: str | None = None
