"""The configuration: YAML file and command line in, one checked `SFTConfig` out.

Nothing here imports torch or transformers: a mistake in a file is answered in a fraction of a second, all mistakes at
once, each with its file and line.
"""

from __future__ import annotations

from collections.abc import Sequence

from sft.configuration.assembly import ConfigBuilder
from sft.configuration.reading import (
    COMMAND_LINE,
    read_command_line_settings,
    read_yaml_settings,
)
from sft.configuration.schema import (
    SFTConfig,
)


def load_config(path: str | None, overrides: Sequence[str] = ()) -> SFTConfig:
    """Reads, translates, types and checks a configuration.

    Args:
        path: a YAML file; None to take everything from `overrides`.
        overrides: command line settings, `["--learning_rate", "1e-4", "--lora_config.r=8"]`; they beat the file.

    Raises:
        ConfigError: with every problem of the file and the command line, a line each.
    """
    reader = ConfigBuilder(path or COMMAND_LINE)
    if path is not None:
        reader.add(*read_yaml_settings(path))
    reader.add(*read_command_line_settings(overrides))
    return reader.finish()
