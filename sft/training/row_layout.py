"""Chooses how rows become a micro-batch for this model, padding-free or padded, and how the loss is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from sft.batching.layout import FlatCollator, PaddedCollator
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import NAME as DOCUMENTS
from sft.modeling.document_attention import UnsupportedAttention
from sft.modeling.output_layer import OutputLayer
from sft.modeling.rope_by_row import give_rows_their_own_rope
from sft.processes.environment import uses_deepspeed
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
    own_rope: str | None = None
    """The kind of RoPE that each row gets by its own length; None where RoPE does not depend on it."""
    obstacle: str | None = None
    """Why rows are padded, as a clause; None if batches are padding-free, or if padding was requested."""

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

    def with_micro_batch_size(self, micro_batch_size: int) -> "RowLayout":
        """The layout for micro-batches of `micro_batch_size` rows or packs; fixed shapes are scaled accordingly."""
        one = self.collator
        if not isinstance(one, FlatCollator) or one.fixed_tokens is None:
            return self
        fixed = one.fixed_tokens * micro_batch_size
        return replace(
            self, collator=FlatCollator(one.pad_token_id, fixed_tokens=fixed, max_seq_length=one.max_seq_length)
        )

    def describe(self) -> str:
        """One line for the log."""
        if isinstance(self.collator, FlatCollator):
            once = "; shared leading tokens are computed once" if self.collator.shares_prefixes else ""
            return f"Padding-free batches: rows are concatenated, and attention stays within each row{once}."
        return f"Rows are padded to the longest row of their batch{f': {self.obstacle}' if self.obstacle else ''}."


def resolve_layout(
    model: "PreTrainedModel",
    config: ModelConfig,
    training: TrainingConfig,
    precision: Precision,
    context: DistributedContext,
    *,
    pad_token_id: int,
    max_seq_length: int,
    keep_device: bool = False,
) -> RowLayout:
    """Finds the layout by running the model on a few tokens. Moves the model to the device of its training.

    Args:
        model: loaded, with its adapters.
        config: the model's section.
        training: the training section.
        precision: the types to compute in.
        context: this process.
        pad_token_id: the token that fills padded rows.
        max_seq_length: tokens of the longest row.
        keep_device: do not move the model, because its weights are or will be sharded over devices, none of which may
            be able to hold all of them.

    Raises:
        ModelError: if the model is not causal.
        ConfigError: if a setting needs padding-free batches, and the model does not support them.
    """
    sharded = uses_deepspeed(training.passed_through.deepspeed)
    if not sharded and not keep_device and not getattr(model, "is_quantized", False):
        cast(Any, model).to(context.device)  # mypy loses the signature behind transformers' decorator
    own_rope = give_rows_their_own_rope(model, max_seq_length)
    trial = ModelTrials(model, precision)
    trial.check_is_causal()
    wanted = [key for key in _KEYS if getattr(training, key) not in (False, None, "auto")]
    attention, obstacle = None, None
    if training.padding_free is not False:
        attention, obstacle = _attention(config.attn_implementation)
        obstacle = (
            obstacle or _obstacle_in_settings(training, sharded=sharded) or trial.obstacle(attention, max_seq_length)
        )
        if obstacle and wanted:
            advice = "Remove the key." if obstacle.startswith("the model") else "Choose one."
            raise ConfigError(f"{wanted[0]}: padding-free batches are not possible: {obstacle}. {advice}")
    is_padding_free = training.padding_free is not False and obstacle is None
    collator: FlatCollator | PaddedCollator = PaddedCollator(pad_token_id, with_positions=own_rope is not None)
    evaluation_collator = collator
    if is_padding_free:
        shares = training.share_prefixes and attention == DOCUMENTS and own_rope is None and trial.can_share_prefixes()
        collator = evaluation_collator = FlatCollator(pad_token_id, shares_prefixes=shares)
        if training.torch_compile:
            collator = _collator_for_compiled_layers(training, pad_token_id, max_seq_length)
    return RowLayout(
        collator=collator,
        evaluation_collator=evaluation_collator,
        attention=attention if is_padding_free else None,
        output=OutputLayer(model, None if sharded else trial.output_layer()),
        own_rope=own_rope,
        obstacle=obstacle,
    )


def _collator_for_compiled_layers(training: TrainingConfig, pad_token_id: int, max_seq_length: int) -> FlatCollator:
    """A compiled layer treats the maximal length as a constant, and would be recompiled for other prefixes."""
    pack = training.tokens_per_batch or (max_seq_length if training.packing else None)
    return FlatCollator(pad_token_id, fixed_tokens=pack, max_seq_length=max_seq_length)


def _attention(requested: str | None) -> tuple[str | None, str | None]:
    """The attention implementation that keeps documents apart, or why there is none."""
    if requested in (None, "sdpa"):  # our implementation calls sdpa for each document
        return DOCUMENTS, None
    if requested.startswith("flash"):
        return None, None  # reads the boundaries itself
    return None, f"attn_implementation: {requested} is set, which does not keep rows apart"


def _obstacle_in_settings(training: TrainingConfig, *, sharded: bool) -> str | None:
    """Why other settings rule out padding-free batches; None if they do not."""
    if training.passed_through.neftune_noise_alpha:
        return "neftune_noise_alpha scales its noise by the length of the row"
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
