"""What was found of model, data and machine before a first configuration is written; frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sft.common.run_records import ModelFootprint

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A model, seen without its weights."""

    name: str
    class_name: str = ""
    footprint: ModelFootprint | None = None
    """With float32 weights; None where the model's config could not be read."""
    positions: int | None = None
    """Positions that it was made for; None where it does not say."""
    tokenizer_file: str | None = None
    """Its `tokenizer.json` on this machine."""
    problem: str = ""
    """Why it could not be looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """The training data, seen by its first rows."""

    place: str
    key: str = "train_file"
    """`train_file`, or `dataset_name` for what is not on this machine."""
    files: tuple[str, ...] = ()
    format_name: str = ""
    columns: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)
    """Its columns -> ours, where its own make no format but their names say what they hold."""
    rows: int = 0
    """Rows looked at."""
    is_complete: bool = True
    """Whether these are all."""
    bad_rows: int = 0
    first_bad_row: str = ""
    longest_row: int | None = None
    """Tokens of the longest row looked at; None where nothing was looked at."""
    are_tokens_counted: bool = False
    """False where tokens were estimated: from bytes, or without the chat template."""
    validation: str | None = None
    """Validation data that lies beside it: a path, or what is said of the folder that holds both."""
    is_validation_found: bool = False
    """Whether a run finds that by itself: in the same folder, named as it should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFacts:
    """Where the first run would most likely be."""

    device: str
    """`cuda` or `cpu`."""
    name: str
    num_gpus: int
    memory_bytes: int | None
    """Of the smallest GPU, or of this process's share of RAM."""
    cpu_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the person wants."""

    model: ModelFacts
    data: DataFacts
    num_gpus: int
    method: str
    config_file: str
    output_dir: str
