"""Reading settings from YAML and the command line: dotted key, value node, and origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from yaml.scanner import ScannerError

from sft.common.errors import ConfigError
from sft.common.files import refuse_special_files
from sft.common.secrets import hide, looks_secret, secrets_in_arguments, secrets_in_text
from sft.configuration.coercion import NULL_TAG, alternatives, describe, record_type
from sft.configuration.installed_transformers import training_arguments_fields
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.renamed import RENAMED
from sft.configuration.schema import NESTED_SECTIONS
from sft.configuration.yaml_bounds import TOO_DEEP, OutOfBounds, YamlBounds

COMMAND_LINE = "command line"
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAPPING_TAG = "tag:yaml.org,2002:map"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting as given. `origin` is the prefix of its error messages: `my.yaml:7` or `command line`."""

    key: str
    node: yaml.Node
    origin: str
    origin_of: Callable[[yaml.Node], str]
    """The origin of a node inside the value."""


class Settings(NamedTuple):
    """The settings of one source."""

    settings: list[Setting]
    problems: list[str]
    invalid: list[str]
    """Keys whose value is malformed: reported in `problems`, not in `settings`."""
    secrets: set[str]
    """Values of keys with a secret name, which no message may quote."""


_IN_QUOTES = "while scanning a quoted scalar"


class _Loader(yaml.SafeLoader):
    """Builds nodes only; values are converted later, by the type of each key."""


def read_yaml_settings(path: str) -> Settings:
    """Read the settings of a YAML file, with nested keys as `lora_config.r`.

    Raises:
        ConfigError: if the file is missing, is not UTF-8 text, or is not valid YAML.
    """
    text = _read_text(path)
    secrets = secrets_in_text(text)
    try:
        root = _compose(text, path)
    except ConfigError as error:
        raise ConfigError(*(hide(problem, secrets) for problem in error.problems)) from None
    if root is None:
        return Settings([], [], [], secrets)
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single string"
        raise ConfigError(f"{path}:1: expected lines like `learning_rate: 1e-4`, found {kind}.")
    collector = _Collector(lambda node: f"{path}:{node.start_mark.line + 1}")
    collector.add_entries(root)
    secrets |= {value for setting in collector.settings for value in _secrets_inside(setting.key, setting.node)}
    return Settings(collector.settings, collector.problems, collector.invalid, secrets)


def read_command_line_settings(arguments: Sequence[str]) -> Settings:
    """Read settings from `--key value`, `--key=value` and `--switch` (true). Later ones override earlier ones."""
    settings, problems, invalid, secrets = given = Settings([], [], [], secrets_in_arguments(arguments))
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            expected = "settings are given as --key value."
            if argument.endswith((".yaml", ".yml")):
                expected = "give the configuration with --config_file."
            problems.append(f"{COMMAND_LINE}: unexpected argument {argument!r}; {expected}")
            continue
        name, equals, value = argument[2:].partition("=")
        head, dot, inner = name.partition(".")
        key = head.replace("-", "_") + dot + inner
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        try:
            node, problem = _command_line_node(key, values)
        except RecursionError:
            node, problem = None, TOO_DEEP
        if node is None:
            problems.append(f"{COMMAND_LINE}: {key}: {problem}.")
            invalid.append(key)
            continue
        collector = _Collector(lambda _: COMMAND_LINE)
        collector.add(key, node, node)
        settings += collector.settings
        problems += collector.problems
        invalid += collector.invalid
    secrets.update(value for setting in settings for value in _secrets_inside(setting.key, setting.node))
    return given


def _secrets_inside(name: str, node: yaml.Node) -> Iterator[str]:
    """The texts under secret names, in a value without circles."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _secrets_inside(name if looks_secret(name) else str(key.value), value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _secrets_inside(name, item)
    elif looks_secret(name):
        yield node.value


def declared_type(key: str) -> Any:
    """The type of a key, also of `lora_config.r` and `dataset_columns.query`; `Any` for unknown keys."""
    head, _, inner = key.partition(".")
    if head in NESTED_SECTIONS:
        keys = keys_of(NESTED_SECTIONS[head][1])
        if not inner:
            return dict[str, Any]
        return keys[inner].annotation if inner in keys else Any
    if head in RENAMED and RENAMED[head].convert is None:
        head = RENAMED[head].name
    known = flat_keys().get(head) or training_arguments_fields().get(head)
    annotation = known.annotation if known else Any
    if not inner:
        return annotation
    mappings = [choice for choice in alternatives(annotation) if get_origin(choice) is dict]
    return get_args(mappings[0])[1] if mappings else Any


def takes_mapping(key: str) -> bool:
    """Whether the value of a key is a mapping with arbitrary names, so that `key.name` can be given."""
    return any(get_origin(choice) is dict for choice in alternatives(declared_type(key)))


def entries_of(setting: Setting) -> list[Setting]:
    """The entries of a list, `datasets[0]` and so on, with their origins. A single entry needs no list."""
    nodes = setting.node.value if isinstance(setting.node, yaml.SequenceNode) else [setting.node]
    return [
        Setting(key=f"{setting.key}[{number}]", node=node, origin=setting.origin_of(node), origin_of=setting.origin_of)
        for number, node in enumerate(nodes)
    ]


def settings_inside(entry: Setting, record: type) -> dict[str, Setting] | None:
    """The settings of one entry, by keys like `datasets[0].path`; None if it is not a mapping.

    A plain string sets the record's first key.
    """
    pairs: list[tuple[yaml.Node, yaml.Node]]
    if isinstance(entry.node, yaml.MappingNode):
        pairs = entry.node.value
    elif isinstance(entry.node, yaml.ScalarNode) and entry.node.tag != NULL_TAG:
        first = next(iter(keys_of(record)))
        pairs = [(yaml.ScalarNode(_TEXT_TAG, first, entry.node.start_mark, entry.node.end_mark), entry.node)]
    else:
        return None
    settings: dict[str, Setting] = {}
    for key_node, value in pairs:
        key = f"{entry.key}.{key_node.value}"
        settings.setdefault(
            key, Setting(key=key, node=value, origin=entry.origin_of(key_node), origin_of=entry.origin_of)
        )
    return settings


def with_entry(mapping: yaml.Node | None, name: str, value: yaml.Node) -> yaml.MappingNode:
    """Add or replace an entry of a mapping, or create the mapping."""
    entries = mapping.value if isinstance(mapping, yaml.MappingNode) else []
    kept = [(key, old) for key, old in entries if key.value != name]
    return yaml.MappingNode(_MAPPING_TAG, [*kept, (yaml.ScalarNode(_TEXT_TAG, name), value)])


def _read_text(path: str) -> str:
    refuse_special_files(ConfigError, path)
    try:
        if (size := Path(path).stat().st_size) > _MAX_BYTES:
            raise ConfigError(f"{path}: has {size:,} bytes; a configuration has at most {_MAX_BYTES:,}. Shorten it.")
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Give the configuration with --config_file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, but --config_file expects a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None


def _compose(text: str, path: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        is_open_quote = error.context == _IN_QUOTES and error.problem == "found unexpected end of stream"
        mark = error.context_mark if is_open_quote else error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        column = f" (column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{where}: not valid YAML: {_explain(error)}{column}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply.") from None


def _explain(error: yaml.MarkedYAMLError) -> str:
    """The parser's message, with a fix for common mistakes."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in what:
        return f"{what}; use spaces, not tabs"
    if error.context == _IN_QUOTES:
        return f"{what}; close the quote, and write a quote inside of it twice"
    if isinstance(error, ScannerError):
        return f"{what}; quote strings that contain ': ' or begin with * & ! % @ `"
    return what


class _Collector:
    """Collects settings from nodes, and problems with valid YAML that no setting can use."""

    def __init__(self, origin: Callable[[yaml.Node], str]) -> None:
        self.origin = origin
        self.settings: list[Setting] = []
        self.problems: list[str] = []
        self.invalid: list[str] = []
        self.first_nodes: dict[str, yaml.Node] = {}
        self.bounds = YamlBounds()

    def add_entries(self, mapping: yaml.MappingNode, prefix: str = "") -> None:
        """Add each entry of a mapping as a setting."""
        for key_node, value in mapping.value:
            if self._is_plain_key(key_node):
                self.add(prefix + key_node.value.strip(), key_node, value)

    def add(self, key: str, key_node: yaml.Node, value: yaml.Node) -> None:
        """Add a setting, or the settings of a nested section."""
        if self._is_duplicate(key, key_node, self.first_nodes):
            return
        section = value if key in NESTED_SECTIONS and isinstance(value, yaml.MappingNode) else None
        node = value if section is None else yaml.MappingNode(value.tag, [], value.start_mark, value.end_mark)
        if not (self._is_bounded(key, node) and self._is_valid(key, node)):
            self.invalid.append(key)
            return
        self.settings.append(Setting(key=key, node=node, origin=self.origin(key_node), origin_of=self.origin))
        if section is not None:
            self.add_entries(section, prefix=f"{key}.")

    def _is_plain_key(self, key_node: yaml.Node) -> bool:
        if not isinstance(key_node, yaml.ScalarNode):
            self.problems.append(f"{self.origin(key_node)}: keys must be strings.")
            return False
        if key_node.tag == _MERGE_TAG:
            self.problems.append(f"{self.origin(key_node)}: merge keys (<<) are not supported; write out the keys.")
            return False
        return True

    def _is_duplicate(self, key: str, key_node: yaml.Node, first_nodes: dict[str, yaml.Node]) -> bool:
        """Whether a key was given before; if so, report it."""
        first = first_nodes.setdefault(key, key_node)
        if first is not key_node:
            origin = self.origin(key_node)
            where = "" if origin == COMMAND_LINE else f", first in line {first.start_mark.line + 1}"
            self.problems.append(f"{origin}: {key}: is given twice{where}. Keep one.")
        return first is not key_node

    def _is_bounded(self, key: str, node: yaml.Node) -> bool:
        """Whether a value may be walked; a problem is reported."""
        try:
            self.bounds.check(key, node)
        except OutOfBounds as error:
            self.problems.append(f"{self.origin(error.node)}: {error}.")
            return False
        return True

    def _is_valid(self, key: str, node: yaml.Node) -> bool:
        """Whether a value has only string keys, without duplicates, and standard types; problems are reported."""
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            self.problems.append(f"{self.origin(node)}: {key}: the tag {node.tag!r} is not supported; remove it.")
            return False
        first_nodes: dict[str, yaml.Node] = {}
        is_valid = True
        for number, entry in enumerate(() if isinstance(node, yaml.ScalarNode) else node.value):
            inner, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
            name = f"{key}[{number}]"
            if inner is not None:
                if not self._is_plain_key(inner):
                    is_valid = False
                    continue
                name = f"{key}.{inner.value}"
                # Continue with the first of two equal keys, to find other problems.
                self._is_duplicate(name, inner, first_nodes)
            # All entries are checked, to find all problems.
            is_valid = self._is_valid(name, value) and is_valid
        return is_valid


def _command_line_node(key: str, values: Sequence[str]) -> tuple[yaml.Node | None, str]:
    """The node for the values after an option; None and the reason if they are invalid.

    Values of string keys are not parsed as YAML: they may contain colons, commas, brackets and number signs.
    """
    choices = alternatives(declared_type(key))
    is_free = Any in choices
    list_types = [choice for choice in choices if get_origin(choice) is list]
    is_records = record_type(declared_type(key)) is not None
    if not values:
        if bool in choices or is_free:
            return yaml.ScalarNode(_TEXT_TAG, "true"), ""
        return None, f"requires a value: {describe(declared_type(key))}"
    if len(values) > 1 and not list_types and not is_free:
        shown = "" if looks_secret(key) else f": {' '.join(values)}"
        return None, f"takes one value, found {len(values)}{shown}. Quote values that contain spaces"
    items_are_strings = list_types == [list[str]] and str not in choices
    if len(values) > 1:
        # In a list of mappings, a value without braces is a string, since a path may contain any character.
        as_text = [items_are_strings or (is_records and not value.startswith("{")) for value in values]
        items = [
            _text_node(value) if is_text else _yaml_node(value) for value, is_text in zip(values, as_text, strict=True)
        ]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items), ""
    structured = is_free or (takes_mapping(key) and (str not in choices or values[0].startswith("{")))
    if structured or (list_types and values[0].startswith("[")) or (is_records and values[0].startswith("{")):
        return _yaml_node(values[0]), ""
    return _text_node(values[0]), ""


def _text_node(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(NULL_TAG if value == "null" else _TEXT_TAG, value)


def _yaml_node(value: str) -> yaml.Node:
    try:
        return yaml.compose(value, Loader=_Loader) or _text_node(value)
    except yaml.YAMLError:
        return _text_node(value)  # not YAML, so a string; coercion decides whether the key takes one
