"""Options of the export command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """The command line, checked."""

    model: str
    output: str | None = None
    """A new folder; None: named after the model."""
    merge: bool = False
    dtype: str = "auto"
    """auto: as the model, or the adapters' base model, is saved."""
    base: str | None = None
    load_in_4bit: bool | None = None
    """Whether the adapters were trained on a base model in 4 bits; None: according to the run's record."""
    device: str = "cpu"
    push_to_hub: str | None = None
    private: bool = False
    gguf: bool = False
    gguf_converter: str | None = None
    trust_remote_code: bool = False
