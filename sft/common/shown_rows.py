"""Records of what is shown of rows: their text in segments, and prompts to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A part of a row's text that is either trained or not."""

    text: str
    trained: bool
    weight: float | None = None
    """In the loss, of a row that has weights; of other text than answers too (`prompt_loss_weight`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePrompt:
    """A prompt to answer before and after training, with the reference answer if the data has one."""

    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Any, ...] | None = None
    text: str | None = None
    reference: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template."""

    @property
    def shown(self) -> str:
        """The prompt for display: the text, or the last message."""
        return self.text if self.text is not None else str(self.messages[-1]["content"]) if self.messages else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPrompt:
    """A prompt of an evaluation set, whose answer is scored."""

    prompt: SamplePrompt
    """With its reference."""
    place: str
    """Origin of its row, `file:line`."""
    row: Mapping[str, Any]
    """The row as read, for functions of the user."""
