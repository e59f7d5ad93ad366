"""The configuration: a YAML file and command line settings in, one checked `SFTConfig` out.

    config = load_config("my.yaml", ["--learning_rate", "1e-4", "--lora_config.r=8"])
    config.training.learning_rate

An `SFTConfig` has the sections `model`, `data`, `training`, `distributed` and `logging`, and the optional ones `lora`,
`quantization` and `fsdp`. All problems are reported at once, each with its file and line, without importing torch or
transformers. The rest is in `sft/configuration/`:

- `schema.py` and the three `*_sections.py`: every key with its type, default and documentation
- `reading.py`, `coercion.py`: YAML and command line settings, converted to the declared types
- `assembly.py` (`ConfigBuilder`), `renamed.py`, `checks/`: old names, unknown keys, contradictions
- `values.py` (`config_to_yaml`, `config_sha256`), `printing.py`, `help.py`: output
- `command_line.py`: the options of all commands
"""

from __future__ import annotations

from collections.abc import Sequence

from sft.common.errors import ConfigError
from sft.configuration.assembly import ConfigBuilder
from sft.configuration.reading import COMMAND_LINE, read_command_line_settings, read_yaml_settings
from sft.configuration.schema import (
    DataConfig,
    DatasetSource,
    DistributedConfig,
    FSDPConfig,
    LoggingConfig,
    LoRAConfig,
    ModelConfig,
    QuantizationConfig,
    SFTConfig,
    TrainingConfig,
)

__all__ = [
    "load_config",
    "ConfigError",
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
]


def load_config(path: str | None, overrides: Sequence[str] = ()) -> SFTConfig:
    """Read and check a configuration.

    Args:
        path: YAML file; None to take all settings from `overrides`.
        overrides: command line settings, which override the file: `["--learning_rate", "1e-4", "--lora_config.r=8"]`.

    Returns:
        The resolved configuration.

    Raises:
        ConfigError: with all problems of the file and the command line, one line each.
    """
    builder = ConfigBuilder(path or COMMAND_LINE)
    if path is not None:
        builder.add(*read_yaml_settings(path))
    builder.add(*read_command_line_settings(overrides))
    return builder.finish()
