"""Records of a run: processes, precision, batch plan, model size, results. Frozen: use `dataclasses.replace`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

from sft.common.data_records import RowRemarks


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
    """The number types that a run computes in."""

    weights: str
    """Type of the (unquantized) weights in memory: `float32`, `bfloat16`, `float16`."""
    mixed: str
    """Autocast: `bf16`, `fp16` or `no`."""
    reason: str = field(default="", compare=False)
    """Where the choice comes from: a setting, the kind of device, the checkpoint that the run resumes from."""


class PackPattern(Protocol):
    """How rows share packs of one capacity (see `sft.batching.packing`)."""

    @property
    def capacity(self) -> int:
        """Maximum number of tokens of a pack."""

    @property
    def num_packs(self) -> int: ...

    @property
    def fill(self) -> float:
        """Used share of the capacity."""

    def most_crowded(self, num_packs: int) -> Sequence[Sized]:
        """The rows' lengths of the packs with the most rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """How many rows an optimizer step trains on, and how they are split."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    world_size: int
    steps_per_epoch: int
    total_steps: int
    packs: PackPattern | None = None
    """Set where rows are packed: then all counts of rows are counts of packs."""
    per_device_eval_batch_size: int = 8
    num_chunks: int = 1
    """Chunks that a micro-batch is computed in: more than one once memory ran out."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The sizes as the settings give them."""
    stopped_early: bool = False
    """Whether the run was stopped early before it was resumed: `total_steps` is that step, and none is left."""

    @property
    def unit(self) -> str:
        """What the plan counts: `rows` or `packs`."""
        return "rows" if self.packs is None else "packs"

    @property
    def global_batch_size(self) -> int:
        """Rows (packs) per optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFootprint:
    """The dimensions of a model that memory and speed depend on."""

    num_parameters: int
    num_trainable_parameters: int
    weight_bytes: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    intermediate_size: int = 0
    """Width inside the feed-forward block; 0 where the model's configuration does not say."""
    num_attention_heads: int = 0
    head_size: int = 0
    """Width of a head of attention; 0 where the heads share the hidden size."""
    num_lookup_parameters: int = 0
    """Parameters of an untied input embedding: looked up, never multiplied."""
    num_4bit_parameters: int = 0
    """Parameters that are stored in 4 bits."""
    num_stacked_parameters: int = 0
    """Parameters of experts that are stacked in one parameter: bitsandbytes quantizes linear layers only."""
    stacked_rank_parameters: int = 0
    """Parameters of an adapter of rank 1 on all stacked experts."""
    adapted_stack_bytes: int = 0
    """Bytes of the stacked experts that have adapters: each forward pass makes a copy of them with the adapter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """Means over all supervised tokens (or sequences) of a dataset; losses in nats per token."""

    loss: float
    """By the tokens' weights, where the rows have any."""
    perplexity: float
    """Of the loss without weights."""
    token_accuracy: float
    sequence_accuracy: float
    loss_unweighted: float | None = None
    """Of supervised tokens that count once each; None without weights, where `loss` is that."""
    rows: int | None = None
    """Rows of a set; None for the mean over several."""
    sets: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Of each set, by name."""
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scores of generated answers of each set (see `sft.common.answer_scores.summary`)."""

    def scores(self) -> dict[str, float]:
        """The means that there are, by name, without those of single sets."""
        means = {name: getattr(self, name) for name in SCORES}
        return {name: value for name, value in means.items() if value is not None}

    @classmethod
    def from_document(cls, saved: Mapping[str, Any]) -> EvaluationResult:
        """From what `document` made of it; another version may have written less, or more."""
        means = {name: saved[name] for name in SCORES if name in saved}
        sets = {name: cls.from_document(one) for name, one in (saved.get("sets") or {}).items()}
        return cls(**means, rows=saved.get("rows"), sets=sets, answers=saved.get("answers") or {})

    def document(self) -> dict[str, Any]:
        """The means, and under `sets` those of each set with its number of rows; ready for JSON."""
        sets = {name: {**one.scores(), "rows": one.rows} for name, one in self.sets.items()}
        answers = {"answers": {name: dict(one) for name, one in self.answers.items()}} if self.answers else {}
        return {**self.scores(), "sets": sets, **answers}


SCORES = ("loss", "loss_unweighted", "perplexity", "token_accuracy", "sequence_accuracy")
"""Fields of `EvaluationResult` that are means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A model's answer to a prompt, and whether an end token ended it (False where it was cut)."""

    text: str
    ended: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleAnswer:
    """A prompt as text, and the model's answers before and after training."""

    prompt: str
    before: str
    after: str = ""
    reference: str | None = None
    before_ended: bool | None = None
    after_ended: bool | None = None
    """Whether an end token ended the answer; None where that is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """The result of `train`. Times in seconds; speeds over the training steps alone, summed over all ranks."""

    status: str
    """`completed`, or `interrupted` where a signal ended training."""
    stopped_by: int = 0
    """Number of that signal; 0 for none."""
    steps: int
    epochs: float | None
    """None for a stream, which has no epochs."""
    loss: float | None
    loss_unweighted: float | None = None
    """None without weights."""
    seconds: float
    examples_per_second: float
    tokens_per_second: float
    supervised_tokens_per_second: float
    model_flops_per_second: float | None = None
    """Floating-point operations by the usual formula (see `sft.modeling.flops`)."""
    mfu: float | None = None
    """Model FLOPs utilization: the share of the peak of all devices; None where the peak is unknown (on CPU)."""
    peak_memory_bytes: int
    memory_share: float | None
    """Peak memory as a share of the device's memory (or of this process's share of RAM)."""
    rows_dropped: int = 0
    """Rows of a stream that could not be used, summed over all ranks."""
    remarks: RowRemarks = field(default_factory=RowRemarks)
    """On the used rows of a stream, of all ranks."""
    bad_steps: int = 0
    """Steps whose update was skipped, since their loss or gradient was NaN or inf."""
    memory_shortages: Mapping[str, int] = field(default_factory=dict)
    """How often memory ran out and chunks became smaller, in `training` and `evaluation` (on this rank)."""
    eval_before: EvaluationResult | None = None
    eval_after: EvaluationResult | None = None
    at_ends: Mapping[str, EvaluationResult] = field(default_factory=dict)
    """Of the test sets and the forgetting check: `test_before`, `test_after`, `forgetting_before`, ..."""
    early_stop: str | None = None
    """Why training stopped before its last step, as a sentence; None where it did not."""
    samples: tuple[SampleAnswer, ...] = field(default_factory=tuple)
    last_checkpoint: str | None = None
