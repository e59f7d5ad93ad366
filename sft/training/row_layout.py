"""How rows become a micro-batch for this model: laid end to end, or padded; and where its losses come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft.batching.layout import IGNORED, FlatCollator, PaddedCollator, model_inputs
from sft.batching.prefixes import FEWEST_SHARED
from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext, Precision
from sft.configuration.schema import ModelConfig, TrainingConfig
from sft.modeling.document_attention import NAME as DOCUMENTS
from sft.modeling.document_attention import UnsupportedAttention, isolated_documents
from sft.modeling.isolation import find_obstacle, tolerance
from sft.modeling.output_layer import OutputLayer, find_output_layer
from sft.processes.environment import uses_deepspeed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KEYS = ("padding_free", "packing", "tokens_per_batch")
"""Settings that need rows laid end to end, the first that is given being named in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLayout:
    """The layout of a run's micro-batches, and what goes with it."""

    collator: FlatCollator | PaddedCollator
    evaluation_collator: FlatCollator | PaddedCollator
    attention: str | None
    """What the model's attention is to be while it trains and is evaluated; None: its own."""
    output: OutputLayer
    obstacle: str | None = None
    """Why rows are padded, as a sentence; None where they are laid end to end, or padding was asked for."""

    @property
    def is_flat(self) -> bool:
        return isinstance(self.collator, FlatCollator)

    @property
    def has_fixed_shape(self) -> bool:
        """Whether every batch has the same number of tokens."""
        return isinstance(self.collator, FlatCollator) and self.collator.fixed_tokens is not None

    def sized(self, micro_batch_size: int) -> "RowLayout":
        """The layout of micro-batches of so many rows or packs: what has one shape is made for one."""
        if not self.has_fixed_shape:
            return self
        fixed = self.collator.fixed_tokens * micro_batch_size
        collator = FlatCollator(self.collator.pad_token_id, fixed_tokens=fixed, longest=self.collator.longest)
        return replace(self, collator=collator)

    def describe(self) -> str:
        """One line for the log."""
        if self.is_flat:
            once = "; leading tokens that rows share are computed once" if self.collator.shares_prefixes else ""
            return f"Rows lie end to end, without padding; each sees itself alone{once}."
        return f"Rows are padded to the longest of their batch{f': {self.obstacle}' if self.obstacle else ''}."


def resolve_layout(
    model: "PreTrainedModel",
    config: ModelConfig,
    training: TrainingConfig,
    precision: Precision,
    context: DistributedContext,
    *,
    pad_token_id: int,
    longest: int,
    stays_in_place: bool = False,
) -> RowLayout:
    """Tries out what the model can be given. Moves it to the device on which it will be trained.

    Args:
        model: loaded, with its adapters.
        config: the model's section.
        training: the training section.
        precision: the types to compute in.
        context: this process.
        pad_token_id: what padded rows are padded with.
        longest: `max_seq_length`.
        stays_in_place: the model is tried where it is: its weights are, or will be, spread over devices, none of which
            may hold all of them.

    Raises:
        ConfigError: if settings need rows laid end to end, and the model cannot have that.
    """
    sharded = uses_deepspeed(training.passed_through.deepspeed)
    if not sharded and not stays_in_place and not getattr(model, "is_quantized", False):
        model.to(context.device)
    trial = _TrialCalls(model, precision)
    wanted = [key for key in _KEYS if getattr(training, key) not in (False, None, "auto")]
    attention, obstacle = None, None
    if training.padding_free is not False:
        attention, obstacle = _attention(config.attn_implementation)
        obstacle = obstacle or _obstacle_in_settings(training, sharded=sharded) or trial.obstacle(attention, longest)
        if obstacle and wanted:
            way_out = "Leave it out." if obstacle.startswith("the model") else "Choose one."
            raise ConfigError(f"{wanted[0]}: rows cannot be laid end to end: {obstacle}. {way_out}")
    is_flat = training.padding_free is not False and obstacle is None
    collator = evaluation_collator = PaddedCollator(pad_token_id)
    if is_flat:
        shares = training.share_prefixes and attention == DOCUMENTS and trial.can_share_prefixes()
        collator = evaluation_collator = FlatCollator(pad_token_id, shares_prefixes=shares)
        if training.torch_compile:
            # A compiled layer takes the bound of lengths for a constant, and would be compiled anew for other pieces.
            pack = training.tokens_per_batch or (longest if training.packing else None)
            collator = FlatCollator(pad_token_id, fixed_tokens=pack, longest=longest)
    return RowLayout(
        collator=collator,
        evaluation_collator=evaluation_collator,
        attention=attention if is_flat else None,
        output=OutputLayer(model, None if sharded else trial.output_layer()),
        obstacle=obstacle,
    )


def _attention(asked_for: str | None) -> tuple[str | None, str | None]:
    """Which attention keeps documents apart, or why none does."""
    if asked_for in (None, "sdpa"):  # which ours is, document by document
        return DOCUMENTS, None
    if asked_for.startswith("flash"):
        return None, None  # takes the boundaries itself
    return None, f"attn_implementation: {asked_for} is asked for, which does not keep rows apart"


def _obstacle_in_settings(training: TrainingConfig, *, sharded: bool) -> str | None:
    """What other settings have against rows laid end to end."""
    if training.passed_through.neftune_noise_alpha:
        return "neftune_noise_alpha scales its noise by the length of the row"
    if sharded:
        return "DeepSpeed spreads the weights, where this was never tried"
    return None


class _TrialCalls:
    """Calls of the model on a few tokens, in the types in which it will be trained."""

    def __init__(self, model: "PreTrainedModel", precision: Precision):
        self._model = model
        self._mixed = precision.mixed

    def obstacle(self, attention: str | None, longest: int) -> str | None:
        with self._autocast():
            found = find_obstacle(self._model, self._lay_out, attention, longest)
        return found and f"the model {found}"

    def can_share_prefixes(self) -> bool:
        """Whether leading tokens that two documents share can stand in the row once.

        Not with dropout: both documents would see the same numbers dropped.
        """
        if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in self._model.modules()):
            return False
        alike = list(range(3, 3 + FEWEST_SHARED))
        documents = [[*alike, 1, 2], [*alike, 2]]
        was_training = self._model.training
        try:
            with self._autocast(), torch.no_grad(), isolated_documents(self._model, DOCUMENTS):
                self._model.train()  # dropout may also be a function, of which the modules tell nothing
                drawn = [self._model(**self._lay_out(documents)).logits for _ in range(2)]
                if not torch.equal(*drawn):
                    return False
                self._model.eval()
                twice = self._model(**self._lay_out(documents)).logits[0].float()
                once = self._model(**self._lay_out(documents, shares_prefixes=True)).logits[0].float()
        except Exception:
            return False  # it does not hand the pieces on to its attention, in whatever way it says so
        finally:
            self._model.train(was_training)
        expected = torch.cat([twice[: len(documents[0])], twice[-1:]])
        return torch.allclose(once, expected, rtol=0, atol=tolerance(self._model) * float(expected.abs().max()))

    def output_layer(self) -> torch.nn.Linear | None:
        # Three tokens: a product of one row may be made by another kernel.
        ids = torch.tensor([[1, 2, 3]], device=self._model.device)
        was_training = self._model.training
        self._model.eval()
        try:
            with self._autocast():
                return find_output_layer(self._model, lambda: self._model(input_ids=ids))
        except Exception:
            return None  # no call of our own making is of use then: the scores are taken as the model gives them
        finally:
            self._model.train(was_training)

    def _autocast(self) -> Any:
        if self._mixed == "no":
            return nullcontext()
        dtype = torch.bfloat16 if self._mixed == "bf16" else torch.float16
        return torch.autocast(self._model.device.type, dtype=dtype)

    def _lay_out(self, documents: Sequence[Sequence[int]], *, shares_prefixes: bool = False) -> dict[str, Any]:
        rows = [{"input_ids": np.array(ids), "labels": np.full(len(ids), IGNORED)} for ids in documents]
        batch = model_inputs(FlatCollator(0, shares_prefixes=shares_prefixes)(rows))
        device = self._model.device
        return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


@contextmanager
def told_of_attention() -> Iterator[None]:
    """Turns what the trial calls could not foresee into one line.

    Raises:
        ConfigError: if the attention finds that it cannot do what the model asks for.
    """
    try:
        yield
    except UnsupportedAttention as obstacle:
        raise ConfigError(f"padding_free: the model {obstacle}. Write padding_free: false.") from None
