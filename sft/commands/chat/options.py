"""What a talk is to be like: who answers, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

BASE_BEFORE_TRAINING = ""
"""As `compare`: the model that training began with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    temperature: float = 0.0
    """0: always the likeliest, so that the same question has the same answer."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that make up this share."""
    max_new_tokens: int = 512
    seed: int = 42


@dataclass(frozen=True, kw_only=True, slots=True)
class TalkOptions:
    """A command line, checked."""

    model: str
    prompt: str | None = None
    """The only question; None: from standard input."""
    system: str | None = None
    plain: bool = False
    """Continue text, although there is a chat template."""
    history: bool = True
    """Whether a question in a terminal comes with those before it and their answers."""
    compare: str | None = None
    """A second model that answers too."""
    base: str | None = None
    merge: bool = False
    load_in_4bit: bool | None = None
    """None: as the adapters' base was when they were trained."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    sampling: Sampling = field(default_factory=Sampling)
