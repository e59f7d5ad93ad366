"""Options of the chat command."""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_BEFORE_TRAINING = ""
"""Value of `compare` for the model that training started from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen, and how many at most."""

    temperature: float = 0.0
    """0: greedy decoding, so that the same question gets the same answer."""
    top_p: float = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    max_new_tokens: int = 512
    seed: int = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """The command line, checked."""

    model: str
    prompt: str | None = None
    """The only question; None: read standard input."""
    system: str | None = None
    plain: bool = False
    """Continue text although there is a chat template."""
    history: bool = True
    """Whether the model sees the earlier turns of the conversation."""
    compare: str | None = None
    """A second model that answers as well."""
    base: str | None = None
    merge: bool = False
    load_in_4bit: bool | None = None
    """None: as the adapters' base model was loaded in training."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    sampling: Sampling = field(default_factory=Sampling)
