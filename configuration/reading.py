"""YAML text and command line to settings as given: key path, value node, and where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from configuration.schema import NESTED_SECTIONS, flat_keys
from sft_errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting as given. `origin` is what an error begins with: `my.yaml:7` or `command line`."""

    key: str
    node: yaml.Node
    origin: str


class _Loader(yaml.SafeLoader):
    """The safe loader, used only to build nodes: values are made later, by each key's type."""


def read_yaml_settings(path: str) -> tuple[list[Setting], list[str]]:
    """The settings of a YAML file, nested keys written `lora_config.r`, and the problems found on the way.

    Raises:
        ConfigError: if the file is missing, is not text, or is not YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Name your configuration with --config_file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; --config_file takes a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(f"{place}: not valid YAML: {error.problem} (column {mark.column + 1}).") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if root is None:
        return [], []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1: expected lines like `learning_rate: 1e-4`, found something else.")
    return _flatten(root, path)


def read_command_line_settings(arguments: Sequence[str]) -> tuple[list[Setting], list[str]]:
    """Settings from `--key value`, `--key=value` and `--switch` (true), later ones winning."""
    settings: list[Setting] = []
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            problems.append(f"command line: {argument!r} is not an option; settings are given as --key value.")
            continue
        key, equals, value = argument[2:].partition("=")
        key = key.replace("-", "_")
        if not equals:
            values = []
            while rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            value = "true" if not values else values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        settings.append(Setting(key=key, node=_command_line_node(key, value), origin="command line"))
    return settings, problems


def _flatten(root: yaml.MappingNode, path: str) -> tuple[list[Setting], list[str]]:
    settings: list[Setting] = []
    problems: list[str] = []
    lines: dict[str, int] = {}

    def add(key: str, key_node: yaml.Node, value: yaml.Node) -> None:
        line = key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{path}:{line}: {key}: stands twice, first in line {lines[key]}. Keep one.")
            return
        lines[key] = line
        settings.append(Setting(key=key, node=value, origin=f"{path}:{line}"))

    for key_node, value in root.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{path}:{key_node.start_mark.line + 1}: a key must be a plain word.")
            continue
        key = key_node.value.strip()
        if key in NESTED_SECTIONS and isinstance(value, yaml.MappingNode):
            add(key, key_node, yaml.MappingNode(value.tag, [], value.start_mark, value.end_mark))
            for inner_key, inner_value in value.value:
                add(f"{key}.{inner_key.value}", inner_key, inner_value)
        else:
            add(key, key_node, value)
    return settings, problems


def _command_line_node(key: str, value: str) -> yaml.Node:
    """The node for a value on the command line. Text that is meant as text is never read as YAML."""
    known = flat_keys().get(key)
    is_plain_text = known is not None and known.annotation in (str, str | None)
    if not is_plain_text:
        try:
            node = yaml.compose(value, Loader=_Loader)
            if node is not None:
                return node
        except yaml.YAMLError:
            pass  # Not YAML, so it is text; its key's type decides whether text will do.
    return yaml.ScalarNode("tag:yaml.org,2002:str", value)
