"""Chooses how rows become a micro-batch for this model, padding-free or padded, and how the loss is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sft.batching.layout import FlatCollator, PaddedCollator, padded_documents
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import NAME as DOCUMENTS
from sft.modeling.document_attention import ONE_BY_ONE, UnsupportedAttention, attention_of
from sft.modeling.experts import expert_counts
from sft.modeling.mixers_by_document import run_by_document
from sft.modeling.output_layer import OutputLayer
from sft.modeling.own_parameters import kinds_of
from sft.modeling.padded_attention import NAME as PADDED
from sft.modeling.rope_by_row import give_rows_their_own_rope
from sft.modeling.varlen_kernel import KernelObstacle
from sft.processes.agreement import agree_on_problem, agree_on_smallest
from sft.processes.environment import uses_deepspeed
from sft.training.decided_layout import TRIED, LayoutFindings, keep_findings
from sft.training.model_trials import ModelTrials

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEYS = ("padding_free", "packing", "tokens_per_batch")
"""Settings that need padding-free batches. An error names the first one that is set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """The layout of a run's micro-batches, with the attention and the output layer that it needs."""

    collator: FlatCollator | PaddedCollator
    evaluation_collator: FlatCollator | PaddedCollator
    attention: str | None
    """Name of the attention implementation during training and evaluation; None keeps the model's own."""
    output: OutputLayer
    findings: LayoutFindings
    """What it was decided by."""
    own_rope: str | None = None
    """The kind of RoPE that each row gets by its own length; None where RoPE does not depend on it."""

    @property
    def obstacle(self) -> str | None:
        """Why rows are padded, as a clause; None if batches are padding-free, or if padding was requested."""
        return self.findings.obstacle

    @property
    def is_padding_free(self) -> bool:
        return isinstance(self.collator, FlatCollator)

    @property
    def name(self) -> str:
        """`padding-free` or `padded`."""
        return "padding-free" if self.is_padding_free else "padded"

    @property
    def has_fixed_shape(self) -> bool:
        """Whether every batch has the same number of tokens."""
        return isinstance(self.collator, FlatCollator) and self.collator.fixed_tokens is not None

    def uses_kernel(self, device: str) -> bool:
        """Whether attention for packed rows is one call of a kernel, whose memory depends on the number of rows."""
        return self.is_padding_free and self.attention != ONE_BY_ONE and device.startswith("cuda")

    def num_documents(self, rows: int) -> int:
        """Documents of a micro-batch of `rows` rows, as its boundaries count them: padded if shapes are fixed."""
        return padded_documents(rows) if self.has_fixed_shape else rows

    def for_compiled_layers(self, training: TrainingConfig, max_seq_length: int) -> "RowLayout":
        """The layout for which compiled layers are not recompiled: micro-batches of one size, where they have one.

        Neither lists of lengths nor shared tokens, which would both be constants of the compiled code.
        """
        findings = replace(self.findings, compiles_layers=True)
        if not isinstance(self.collator, FlatCollator):
            return replace(self, findings=findings)
        size = training.tokens_per_batch or (max_seq_length if training.packing else None)
        flat = replace(self.collator, lists_lengths=False)
        fixed = replace(flat, shares_prefixes=False, fixed_tokens=size, max_seq_length=max_seq_length)
        return replace(self, collator=fixed, evaluation_collator=flat, findings=findings)

    def with_micro_batch_size(self, micro_batch_size: int) -> "RowLayout":
        """The layout for micro-batches of `micro_batch_size` rows or packs; fixed shapes are scaled accordingly."""
        one = self.collator
        if not isinstance(one, FlatCollator) or one.fixed_tokens is None:
            return self
        fixed = one.fixed_tokens * micro_batch_size
        return replace(self, collator=replace(one, fixed_tokens=fixed))

    def describe(self) -> str:
        """One line for the log."""
        found = self.findings
        if isinstance(self.collator, FlatCollator):
            once = "; shared leading tokens are computed once" if self.collator.shares_prefixes else ""
            if found.sharing_obstacle is not None:
                once = f"; shared leading tokens are computed for each row: {found.sharing_obstacle}"
            text = f"Padding-free batches: rows are concatenated, and attention stays within each row{once}"
            if found.mixers_by_document:
                kinds = kinds_of(found.mixers_by_document)
                text += f"; {kinds}, which would pass on what came before, run document by document"
            if found.numbers_documents:
                text += "; kernels of convolutions and recurrences are told which row a token is of"
            if found.attends_one_by_one:
                text += f"; {found.kernel_obstacle}: attention goes document by document"
        else:
            text = f"Rows are padded to the longest row of their batch{f': {self.obstacle}' if self.obstacle else ''}"
            if self.obstacle and self.obstacle == found.kernel_obstacle:
                text += " (padding_free: true attends document by document)"
        text += "" if found.uses_output_layer else "; the loss is computed from the model's own logits"
        return f"{text}{'' if found.reason == TRIED else f' ({found.reason})'}."


def resolve_layout(
    model: "PreTrainedModel",
    config: ModelConfig,
    training: TrainingConfig,
    precision: Precision,
    context: DistributedContext,
    *,
    pad_token_id: int,
    max_seq_length: int,
    kept: LayoutFindings | None = None,
) -> RowLayout:
    """Finds the layout by running the model on a few tokens.

    Args:
        model: loaded, with its adapters, on the device of its training.
        config, training: the model's and the training section.
        precision: the types to compute in.
        context: this process; all processes of the run must call it.
        pad_token_id, max_seq_length: the token that fills padded rows; tokens of the longest row.
        kept: what the resumed run found out (see `sft.training.decided_layout`); None for a new run.

    Raises:
        ModelError: if the model is not causal.
        ConfigError: if a setting needs padding-free batches, and the model does not support them.
    """
    own_rope = give_rows_their_own_rope(model, max_seq_length)
    trial = ModelTrials(model, precision)
    trial.check_is_causal()
    sharded = uses_deepspeed(training.passed_through.deepspeed)
    tried = _find_attention(trial, config, training, context, max_seq_length, kept)
    _refuse_if_needed(training, tried.obstacle)
    is_padding_free = training.padding_free is not False and tried.obstacle is None
    run_by_document(model, tried.mixers)
    may_share = is_padding_free and training.share_prefixes
    sharing_obstacle = _sharing_obstacle(trial, tried, own_rope, training, context) if may_share else None
    output_layer = None if sharded else trial.output_layer()
    skips_padding_mask = not is_padding_free and not sharded and trial.can_skip_padding_mask(pad_token_id)
    found = LayoutFindings(
        is_padding_free=is_padding_free,
        obstacle=tried.obstacle,
        kernel_obstacle=tried.kernel_obstacle,
        shares_prefixes=may_share and sharing_obstacle is None,
        sharing_obstacle=sharing_obstacle,
        uses_output_layer=bool(agree_on_smallest(output_layer is not None, context)),
        attention=attention_of(model),
        skips_padding_mask=bool(agree_on_smallest(skips_padding_mask, context)),
        mixers_by_document=tried.mixers,
        numbers_documents=tried.numbers_documents,
    )
    found = keep_findings(found, kept)
    padded = PaddedCollator(pad_token_id, with_positions=bool(own_rope), weighs_tokens=bool(expert_counts(model)))
    layout = RowLayout(
        collator=(collator := _collator(found, padded)),
        evaluation_collator=collator,
        attention=tried.attention if found.is_padding_free else (PADDED if found.skips_padding_mask else None),
        output=OutputLayer(model, output_layer if found.uses_output_layer else None),
        own_rope=own_rope,
        findings=found,
    )
    return layout.for_compiled_layers(training, max_seq_length) if training.torch_compile is True else layout


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """What keeps documents of a packed row apart."""

    attention: str | None = None
    """See `RowLayout.attention`."""
    obstacle: str | None = None
    """Why nothing does, as a clause."""
    kernel_obstacle: str | None = None
    """Why torch's kernel is not used, as a clause."""
    mixers: Sequence[str] = ()
    """Modules that run document by document."""
    numbers_documents: bool = False
    """See `LayoutFindings`."""


def _sharing_obstacle(
    trial: ModelTrials, tried: _Tried, own_rope: str | None, training: TrainingConfig, context: DistributedContext
) -> str | None:
    """Why shared leading tokens cannot be computed once, as a clause; None if they can be. A collective operation."""
    return agree_on_problem(_own_sharing_obstacle(trial, tried, own_rope, training), context)


def _own_sharing_obstacle(
    trial: ModelTrials, tried: _Tried, own_rope: str | None, training: TrainingConfig
) -> str | None:
    """The same on this process."""
    if tried.attention not in (DOCUMENTS, ONE_BY_ONE):
        return "flash attention takes complete rows"
    if tried.mixers or tried.numbers_documents:
        return f"{kinds_of(tried.mixers) or 'kernels of mixers'} take complete rows"
    if own_rope is not None:
        return f"positions depend on the length of each row ({own_rope})"
    if training.passed_through.neftune_noise_alpha:
        return "neftune_noise_alpha draws noise for each row"
    return trial.sharing_obstacle(tried.attention)


def _collator(found: LayoutFindings, padded: PaddedCollator) -> FlatCollator | PaddedCollator:
    """What makes micro-batches of rows."""
    if not found.is_padding_free:
        return padded
    return FlatCollator(
        padded.pad_token_id,
        shares_prefixes=found.shares_prefixes,
        lists_lengths=found.attends_one_by_one or bool(found.mixers_by_document),
        numbers_documents=found.numbers_documents,
        weighs_tokens=padded.weighs_tokens,
    )


def _find_attention(
    trial: ModelTrials,
    config: ModelConfig,
    training: TrainingConfig,
    context: DistributedContext,
    max_seq_length: int,
    kept: LayoutFindings | None,
) -> _Tried:
    """What keeps documents apart, or why nothing does: tried.

    Where the kernel for packed rows cannot be used, documents are attended one by one if padding-free batches were
    requested, and else rows are padded: that is one call a layer, whereas one by one takes as many as there are rows,
    which on a GPU has not been measured. A collective operation.
    """
    if training.padding_free is False:
        return _Tried()
    attention, obstacle = _attention(config.attn_implementation)
    sharded = uses_deepspeed(training.passed_through.deepspeed)
    obstacle = obstacle or _obstacle_in_settings(training, sharded=sharded)
    kernel_obstacle = None
    if kept is not None:
        obstacle, kernel_obstacle = obstacle or kept.obstacle, kept.kernel_obstacle
    if obstacle is not None:
        obstacle = agree_on_problem(obstacle, context)
        return _Tried(attention=attention, obstacle=obstacle, kernel_obstacle=kernel_obstacle)
    tried = _Tried(attention=attention)
    if kernel_obstacle is None:
        try:
            tried = _try_mixers(trial, attention, max_seq_length, kept)
        except KernelObstacle as reason:
            kernel_obstacle = str(reason)
        kernel_obstacle = agree_on_problem(kernel_obstacle, context)
    if kernel_obstacle is not None:
        tried = _Tried(attention=ONE_BY_ONE, obstacle=kernel_obstacle)
        if _requests(training) or (kept is not None and kept.is_padding_free):
            tried = _try_mixers(trial, ONE_BY_ONE, max_seq_length, kept)
    obstacle = agree_on_problem(tried.obstacle, context)
    if obstacle is not None:
        return _Tried(attention=tried.attention, obstacle=obstacle, kernel_obstacle=kernel_obstacle)
    return replace(tried, kernel_obstacle=kernel_obstacle)


def _try_mixers(trial: ModelTrials, attention: str | None, max_seq_length: int, kept: LayoutFindings | None) -> _Tried:
    """Whether an attention keeps documents apart, and what mixers need for it: nothing, numbers of documents, or hooks.

    Args:
        trial: of the model.
        attention: to try.
        max_seq_length: tokens of the longest row.
        kept: of the resumed run, which is tried alone, unless it needs kernels that are gone; None for a new run.

    Raises:
        KernelObstacle: if only torch's kernel for packed rows cannot be used.
    """
    if kept is not None:
        mixers, numbers = kept.mixers_by_document, kept.numbers_documents
        obstacle = trial.obstacle(attention, max_seq_length, mixers, numbers_documents=numbers)
        if obstacle is None or not numbers:
            return _Tried(attention=attention, obstacle=obstacle, mixers=mixers, numbers_documents=numbers)
    plain = _Tried(attention=attention, obstacle=trial.obstacle(attention, max_seq_length))
    mixers = trial.mixers(attention) if plain.obstacle is not None else []
    if not mixers:
        return plain
    # Kernels of packages that are told the documents are faster than one call for each of them.
    if trial.obstacle(attention, max_seq_length, numbers_documents=True) is None:
        return _Tried(attention=attention, numbers_documents=True)
    is_enough = trial.obstacle(attention, max_seq_length, mixers) is None
    return _Tried(attention=attention, mixers=tuple(mixers)) if is_enough else plain


def _requests(training: TrainingConfig) -> list[str]:
    """The settings that need padding-free batches."""
    return [key for key in _KEYS if getattr(training, key) not in (False, None, "auto")]


def _refuse_if_needed(training: TrainingConfig, obstacle: str | None) -> None:
    """Refuses a setting that needs padding-free batches, if there is an obstacle.

    Raises:
        ConfigError: naming the setting.
    """
    wanted = _requests(training)
    if obstacle and wanted:
        advice = "Remove the key." if obstacle.startswith("the model") else "Choose one."
        raise ConfigError(f"{wanted[0]}: padding-free batches are not possible: {obstacle}. {advice}")


def _attention(requested: str | None) -> tuple[str | None, str | None]:
    """The attention implementation that keeps documents apart, or why there is none."""
    if requested in (None, "sdpa"):  # our implementation calls sdpa for each document
        return DOCUMENTS, None
    if requested.startswith("flash"):
        return None, None  # reads the boundaries itself
    return None, f"attn_implementation: {requested} is set, which does not keep rows apart"


def _obstacle_in_settings(training: TrainingConfig, *, sharded: bool) -> str | None:
    """Why other settings rule out padding-free batches; None if they do not."""
    if sharded:
        return "DeepSpeed shards the weights, which is untested with padding-free batches"
    return None


@contextmanager
def unsupported_attention_as_config_error() -> Iterator[None]:
    """Context that turns an attention error, which the trials could not foresee, into a configuration error.

    Raises:
        ConfigError: if the model needs an attention feature that our implementation lacks.
    """
    try:
        yield
    except UnsupportedAttention as obstacle:
        raise ConfigError(f"padding_free: the model {obstacle}. Set padding_free: false.") from None
