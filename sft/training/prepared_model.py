"""The model of a run, loaded, with what the trials on it found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft.common.run_records import ModelFootprint, Precision
from sft.modeling.architecture import num_positions
from sft.modeling.router_loss import RouterLoss
from sft.training.row_layout import RowLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedModel:
    """A model that is ready to train, with what loading it and the trials on it found out."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    precision: Precision
    layout: RowLayout
    footprint: ModelFootprint
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer."""

    router_loss: RouterLoss | None = None
    """The load-balancing loss that is trained; None for none."""

    @property
    def positions(self) -> int | None:
        """The number of positions that the model's configuration states; None if it states none."""
        return num_positions(self.model.config)

    @property
    def class_name(self) -> str:
        """The model's class, without its adapters."""
        return class_name(self.model)


def class_name(model: Any) -> str:
    """A model's class, without its adapters."""
    return type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
