"""YAML text and command line to settings as given: key path, value node, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from sft.common.errors import ConfigError
from sft.configuration.coercion import NULL_TAG, alternatives, describe, record_type
from sft.configuration.installed_transformers import training_arguments_fields
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.renamed import RENAMED
from sft.configuration.schema import NESTED_SECTIONS

COMMAND_LINE = "command line"
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAPPING_TAG = "tag:yaml.org,2002:map"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One setting as given. `origin` is what an error begins with: `my.yaml:7` or `command line`."""

    key: str
    node: yaml.Node
    origin: str
    place: Callable[[yaml.Node], str]
    """The same for a node inside of the value."""


class Settings(NamedTuple):
    """What one source gives."""

    settings: list[Setting]
    problems: list[str]
    unsound: list[str]
    """Keys with a value that nothing can be made of: named in `problems`, left out of `settings`."""


class _Loader(yaml.SafeLoader):
    """The safe loader, used only to build nodes: values are made later, by each key's type."""


def read_yaml_settings(path: str) -> Settings:
    """The settings of a YAML file, nested keys written `lora_config.r`, and the problems found on the way.

    Raises:
        ConfigError: if the file is missing, is not text, or is not YAML.
    """
    root = _compose(_read_text(path), path)
    if root is None:
        return Settings([], [], [])
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single text"
        raise ConfigError(f"{path}:1: expected lines like `learning_rate: 1e-4`, found {kind}.")
    collector = _Collector(lambda node: f"{path}:{node.start_mark.line + 1}")
    collector.add_entries(root)
    return Settings(collector.settings, collector.problems, collector.unsound)


def read_command_line_settings(arguments: Sequence[str]) -> Settings:
    """Settings from `--key value`, `--key=value` and `--switch` (true), later ones winning."""
    settings, problems, unsound = given = Settings([], [], [])
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or len(argument) == 2:
            problems.append(f"{COMMAND_LINE}: {argument!r} is not an option; settings are given as --key value.")
            continue
        name, equals, value = argument[2:].partition("=")
        head, dot, inner = name.partition(".")
        key = head.replace("-", "_") + dot + inner
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        node, problem = _command_line_node(key, values)
        if node is None:
            problems.append(f"{COMMAND_LINE}: {key}: {problem}.")
            unsound.append(key)
            continue
        collector = _Collector(lambda _: COMMAND_LINE)
        collector.add(key, node, node)
        settings += collector.settings
        problems += collector.problems
        unsound += collector.unsound
    return given


def declared_type(key: str) -> Any:
    """What type of value a key takes, `lora_config.r` and `dataset_columns.query` too; `Any` for an unknown key."""
    head, _, inner = key.partition(".")
    if head in NESTED_SECTIONS:
        keys = keys_of(NESTED_SECTIONS[head][1])
        if not inner:
            return dict[str, Any]
        return keys[inner].annotation if inner in keys else Any
    if head in RENAMED and RENAMED[head].change is None:
        head = RENAMED[head].name
    known = flat_keys().get(head) or training_arguments_fields().get(head)
    annotation = known.annotation if known else Any
    if not inner:
        return annotation
    mappings = [choice for choice in alternatives(annotation) if get_origin(choice) is dict]
    return get_args(mappings[0])[1] if mappings else Any


def takes_mapping(key: str) -> bool:
    """Whether `key.name` can be given: a setting whose value is a mapping of free names."""
    return any(get_origin(choice) is dict for choice in alternatives(declared_type(key)))


def entries_of(setting: Setting) -> list[Setting]:
    """The entries of a list, `datasets[0]` and so on, each at its own place; one may stand without a list around it."""
    nodes = setting.node.value if isinstance(setting.node, yaml.SequenceNode) else [setting.node]
    return [
        Setting(key=f"{setting.key}[{number}]", node=node, origin=setting.place(node), place=setting.place)
        for number, node in enumerate(nodes)
    ]


def settings_inside(entry: Setting, record: type) -> dict[str, Setting] | None:
    """The settings of one entry by their keys, `datasets[0].path` and so on; None if it is no mapping.

    A plain text is the record's first key.
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
        settings.setdefault(key, Setting(key=key, node=value, origin=entry.place(key_node), place=entry.place))
    return settings


def with_entry(mapping: yaml.Node | None, name: str, value: yaml.Node) -> yaml.MappingNode:
    """A mapping with one entry added or replaced; a new one where there was none."""
    entries = mapping.value if isinstance(mapping, yaml.MappingNode) else []
    kept = [(key, old) for key, old in entries if key.value != name]
    return yaml.MappingNode(_MAPPING_TAG, [*kept, (yaml.ScalarNode(_TEXT_TAG, name), value)])


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Name your configuration with --config_file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; --config_file takes a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None


def _compose(text: str, path: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        column = f" (column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{place}: not valid YAML: {_explain(error)}{column}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply.") from None


def _explain(error: yaml.MarkedYAMLError) -> str:
    """What the parser says, with the mend for what people most often trip over."""
    what = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in what:
        return f"{what}; write spaces, not tabs"
    if isinstance(error, yaml.scanner.ScannerError):
        return f"{what}; a text that holds ': ' or begins with * & ! % @ ` needs quotes"
    return what


class _Collector:
    """Gathers settings from nodes; what YAML allows and no setting can mean becomes a problem."""

    def __init__(self, origin: Callable[[yaml.Node], str]) -> None:
        self.origin = origin
        self.settings: list[Setting] = []
        self.problems: list[str] = []
        self.unsound: list[str] = []
        self.lines: dict[str, yaml.Node] = {}

    def add_entries(self, mapping: yaml.MappingNode, prefix: str = "") -> None:
        """Each entry of a mapping as a setting of its own."""
        for key_node, value in mapping.value:
            if self._is_plain_key(key_node):
                self.add(prefix + key_node.value.strip(), key_node, value)

    def add(self, key: str, key_node: yaml.Node, value: yaml.Node) -> None:
        if self._stands_twice(key, key_node, self.lines):
            return
        is_section = key in NESTED_SECTIONS and isinstance(value, yaml.MappingNode)
        node = yaml.MappingNode(value.tag, [], value.start_mark, value.end_mark) if is_section else value
        if not self._is_sound(key, node, ()):
            self.unsound.append(key)
            return
        self.settings.append(Setting(key=key, node=node, origin=self.origin(key_node), place=self.origin))
        if is_section:
            self.add_entries(value, prefix=f"{key}.")

    def _is_plain_key(self, key_node: yaml.Node) -> bool:
        if not isinstance(key_node, yaml.ScalarNode):
            self.problems.append(f"{self.origin(key_node)}: a key must be a plain word.")
            return False
        if key_node.tag == _MERGE_TAG:
            self.problems.append(f"{self.origin(key_node)}: merge keys (<<) are not supported; write the keys out.")
            return False
        return True

    def _stands_twice(self, key: str, key_node: yaml.Node, lines: dict[str, yaml.Node]) -> bool:
        first = lines.setdefault(key, key_node)
        if first is not key_node:
            place = self.origin(key_node)
            where = "" if place == COMMAND_LINE else f", first in line {first.start_mark.line + 1}"
            self.problems.append(f"{place}: {key}: stands twice{where}. Keep one.")
        return first is not key_node

    def _is_sound(self, key: str, node: yaml.Node, around: tuple[yaml.Node, ...]) -> bool:
        """Whether a value, all the way in, is of plain keys, each once, and standard types."""
        if any(node is outer for outer in around):
            self.problems.append(f"{self.origin(node)}: {key}: refers to itself.")
            return False
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            self.problems.append(f"{self.origin(node)}: {key}: the tag {node.tag!r} is not supported; leave it out.")
            return False
        inside = (*around, node)
        lines: dict[str, yaml.Node] = {}
        sound = True
        for number, entry in enumerate(() if isinstance(node, yaml.ScalarNode) else node.value):
            inner, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
            name = f"{key}[{number}]"
            if inner is not None:
                name = f"{key}.{inner.value}"
                if not self._is_plain_key(inner):
                    sound = False
                    continue
                # The first one counts from here on, so that what else is wrong is found too.
                self._stands_twice(name, inner, lines)
            # Every entry is looked at, so that all problems are found.
            sound = self._is_sound(name, value, inside) and sound
        return sound


def _command_line_node(key: str, values: Sequence[str]) -> tuple[yaml.Node | None, str]:
    """The node for the values after an option; None and the reason where they cannot be meant.

    Text that is meant as text is never read as YAML: it may hold colons, commas, brackets and number signs.
    """
    choices = alternatives(declared_type(key))
    is_free = Any in choices
    list_types = [choice for choice in choices if get_origin(choice) is list]
    is_records = record_type(declared_type(key)) is not None
    if not values:
        if bool in choices or is_free:
            return yaml.ScalarNode(_TEXT_TAG, "true"), ""
        return None, f"needs a value after it, {describe(declared_type(key))}"
    if len(values) > 1 and not list_types and not is_free:
        return None, f"takes one value, found {len(values)}: {' '.join(values)}. Text with spaces needs quotes"
    item_is_text = list_types == [list[str]] and str not in choices
    if len(values) > 1:
        # Of a list of mappings, a value without its braces is a text: a path may hold anything.
        as_text = [item_is_text or (is_records and not value.startswith("{")) for value in values]
        items = [
            _text_node(value) if is_text else _yaml_node(value) for value, is_text in zip(values, as_text, strict=True)
        ]
        return yaml.SequenceNode("tag:yaml.org,2002:seq", items), ""
    structured = is_free or any(get_origin(choice) is dict for choice in choices)
    if structured or (list_types and values[0].startswith("[")) or (is_records and values[0].startswith("{")):
        return _yaml_node(values[0]), ""
    return _text_node(values[0]), ""


def _text_node(value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(NULL_TAG if value == "null" else _TEXT_TAG, value)


def _yaml_node(value: str) -> yaml.Node:
    try:
        return yaml.compose(value, Loader=_Loader) or _text_node(value)
    except (yaml.YAMLError, RecursionError):
        return _text_node(value)  # Not YAML, so it is text; its key's type decides whether text will do.
