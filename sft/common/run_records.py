"""Records of a run: processes, precision, batch plan, model size, results. Frozen: use `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


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
class Precision:
    """The types that a run computes in."""

    weights: str
    """Type of the weights in memory (of the unquantized ones): `float32`, `bfloat16`, `float16`."""
    mixed: str
    """Autocast: `bf16`, `fp16` or `no`."""


class PackPattern(Protocol):
    """How rows share packs of one capacity (see `sft.batching.packing`)."""

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
    """Operations that the trained tokens cost by the usual formula (see `sft.modeling.flops`)."""
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
