"""What was found out about model, data and machine, and what the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sft.common.run_records import ModelFootprint

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A model, inspected without its weights."""

    name: str
    class_name: str = ""
    footprint: ModelFootprint | None = None
    """With float32 weights; None if config.json cannot be read."""
    context_length: int | None = None
    """Tokens; None if config.json does not name it."""
    tokenizer_file: str | None = None
    """Its `tokenizer.json` on this machine."""
    problem: str = ""
    """Why it could not be inspected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataInfo:
    """The training data, inspected by its first rows."""

    name: str
    """Path or name, as given."""
    key: str = "train_file"
    """`train_file`, or `dataset_name` for a dataset on the Hub, which is not inspected."""
    files: tuple[str, ...] = ()
    format_name: str = ""
    columns: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    dataset_columns: Mapping[str, str] = field(default_factory=dict)
    """Mapping of columns that was guessed from their names; empty if the columns match a format."""
    num_rows: int = 0
    """Rows inspected."""
    is_complete: bool = True
    """Whether all rows were inspected."""
    num_unanswerable: int = 0
    """Questions without an answer (SQuAD 2.0), which are no bad rows."""
    num_bad_rows: int = 0
    first_bad_row: str = ""
    max_tokens: int | None = None
    """Tokens of the longest inspected row; None if no row was inspected."""
    mean_tokens: float = 0.0
    """Estimated tokens of a row, on average; 0 if no row was inspected."""
    are_tokens_counted: bool = False
    """False if tokens were estimated: from bytes, or without the chat template."""
    validation: str | None = None
    """Path of the validation data beside the training data."""
    is_validation_found: bool = False
    """Whether a run finds the validation data without a setting: in the same folder, with a name that marks it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineInfo:
    """This machine."""

    device: str
    """`cuda` or `cpu`."""
    name: str
    num_gpus: int
    memory_bytes: int | None
    """Memory of the smallest GPU, or the main memory available to this process."""
    cpu_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the user chose."""

    model: ModelInfo
    data: DataInfo
    num_gpus: int
    method: str
    config_file: str
    output_dir: str
