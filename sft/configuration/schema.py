"""Every configuration key: type, default and meaning.

The YAML is flat: each key belongs to the one section that has a field of that name. Only `lora_config`,
`quantization_config` and `fsdp` are nested. The string below a field is its documentation, which `--help` prints.
The sections are declared in `model_sections`, `data_sections` and `training_sections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sft.configuration.data_sections import RECORD_FORMATS, DataConfig, DatasetSource
from sft.configuration.model_sections import LoRAConfig, ModelConfig, QuantizationConfig
from sft.configuration.training_sections import DistributedConfig, FSDPConfig, LoggingConfig, TrainingConfig

__all__ = [
    "SFTConfig",
    "ModelConfig",
    "DataConfig",
    "DatasetSource",
    "TrainingConfig",
    "DistributedConfig",
    "LoggingConfig",
    "LoRAConfig",
    "QuantizationConfig",
    "FSDPConfig",
    "FLAT_SECTIONS",
    "NESTED_SECTIONS",
    "RECORD_FORMATS",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig:
    """The resolved configuration of a run."""

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    logging: LoggingConfig
    distributed: DistributedConfig
    lora: LoRAConfig | None = None
    quantization: QuantizationConfig | None = None
    fsdp: FSDPConfig | None = None
    notices: tuple[str, ...] = ()
    """Lines to log at startup: renamed keys, settings without effect. Not part of the saved file."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> `file:line` where it was given, for errors that are found later. Not part of the saved file."""
    written: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> the old name under which it was given. Not part of the saved file."""

    @property
    def sampling_strategy(self) -> str:
        """The order of stored rows: `random`, `sequential`, `by_length`, or `group_by_length`."""
        names = {"shuffled": "random", "given": "sequential", "by_length": "by_length"}
        order = self.data.order
        return self.training.passed_through.train_sampling_strategy if order is None else names[order]


FLAT_SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "distributed": DistributedConfig,
    "logging": LoggingConfig,
}
"""Field of SFTConfig -> section."""
NESTED_SECTIONS: dict[str, tuple[str, type]] = {
    "lora_config": ("lora", LoRAConfig),
    "quantization_config": ("quantization", QuantizationConfig),
    "fsdp": ("fsdp", FSDPConfig),
}
"""YAML key -> (field of SFTConfig, section)."""
