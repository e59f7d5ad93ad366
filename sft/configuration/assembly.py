"""From settings with origins to a checked `SFTConfig`, with all problems at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import yaml

from sft.common.did_you_mean import did_you_mean, find_closest
from sft.common.errors import ConfigError
from sft.configuration.batch_sizes import with_auto_sizes
from sft.configuration.checks import Contradiction, find_contradictions, find_notices
from sft.configuration.coercion import NULL_TAG, CoercionError, coerce, describe, found, record_type
from sft.configuration.installed_transformers import training_arguments_fields
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.reading import (
    COMMAND_LINE,
    Setting,
    entries_of,
    settings_inside,
    takes_mapping,
    with_entry,
)
from sft.configuration.renamed import HINTS, MANAGED, RENAMED, WITHOUT_EFFECT, changed_node
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    LoggingConfig,
    SFTConfig,
)

_OTHERS_WORDS = {
    "fsdp": "is a section here, and the rest is found by itself: write fsdp: {} for its defaults, or checkpoints (full "
    "| sharded) and reshard_after_forward (true | false) below it"
}
"""What to say of a section for which other trainers take a text."""


class ConfigBuilder:
    """Collects settings and problems; `finish` makes the configuration or raises all problems at once."""

    def __init__(self, main_source: str) -> None:
        self.main_source = main_source
        """Where a missing key is looked for: the file, or the command line where there is no file."""
        self.settings: dict[str, Setting] = {}
        self.origins: dict[str, str] = {}
        self.failed: set[str] = set()
        """Keys already reported: their value is a stand-in, so nothing further is said of them."""
        self.written: dict[str, str] = {}
        """Today's name of a key -> the older name under which it was given."""
        self.problems: list[str] = []
        self.notices: list[str] = []

    def add(self, settings: Sequence[Setting], problems: Sequence[str], unsound: Sequence[str]) -> None:
        """Adds settings that beat those added before."""
        self.problems += problems
        self.failed.update(unsound)
        given_here: dict[str, Setting] = {}
        for setting in settings:
            translated = self._translate(setting)
            if translated is None:
                continue
            other = given_here.get(translated.key)
            if other is not None and setting.origin != COMMAND_LINE:
                self.problems.append(
                    f"{setting.origin}: {setting.key}: {translated.key} is given in {other.origin} too. Keep one."
                )
            given_here[translated.key] = translated
            self._put(translated)

    def _put(self, setting: Setting) -> None:
        section, _, inner = setting.key.partition(".")
        if section in NESTED_SECTIONS and not inner and setting.node.tag == NULL_TAG:
            # `--lora_config null` switches a section of the file off, its keys with it.
            for key in [key for key in self.settings if key.startswith(section + ".")]:
                del self.settings[key]
        elif section not in NESTED_SECTIONS and inner and takes_mapping(section):
            # `--dataset_columns.query question` adds to the mapping that is there.
            before = self.settings.get(section)
            node = with_entry(before and before.node, inner, setting.node)
            setting = dataclasses.replace(setting, key=section, node=node)
        self.settings[setting.key] = setting

    def finish(self) -> SFTConfig:
        sections: dict[str, Any] = {}
        for name, section_type in FLAT_SECTIONS.items():
            sections[name] = self._build_section(section_type, self.settings)
        for yaml_key, (name, section_type) in NESTED_SECTIONS.items():
            if self._section_is_given(yaml_key):
                sections[name] = self._build_section(section_type, self.settings, prefix=yaml_key + ".")
        extra = self._extra_training_arguments()
        training = dataclasses.replace(sections["training"], extra_training_arguments=extra)
        sections["training"] = with_auto_sizes(training, self.origins)
        sections["logging"] = _without_none_tracker(sections["logging"])
        config = SFTConfig(**sections, origins=self.origins, written=self.written)
        for contradiction in find_contradictions(config):
            if self._follows_from_a_failure(contradiction):
                continue
            origin = self.origins.get(contradiction.key, self.main_source)
            self.problems.append(f"{origin}: {self._name_of(contradiction.key)}: {contradiction.message}")
        if self.problems:
            raise ConfigError(*self.problems_in_order())
        return dataclasses.replace(config, notices=(*self.notices, *find_notices(config)))

    def _follows_from_a_failure(self, contradiction: Contradiction) -> bool:
        """Whether it speaks of a key that is reported as wrong already: messages name the keys that they are of.

        Inside a section or an entry, they may name a key there without the prefix.
        """
        key = contradiction.key
        words = re.findall(r"[\w.]*\w", contradiction.message)
        inside = [f"{place}.{word}" for place in (key, key.rpartition(".")[0]) for word in words]
        return bool(self.failed.intersection({key, *words, *inside}))

    def _translate(self, setting: Setting) -> Setting | None:
        """The setting under today's name; None where nothing is left of it but a line."""
        if setting.key in WITHOUT_EFFECT:
            self.notices.append(f"{setting.origin}: {setting.key} is no longer needed: {WITHOUT_EFFECT[setting.key]}.")
            return None
        renamed = RENAMED.get(setting.key)
        if renamed is None:
            self.written.pop(setting.key, None)
            return setting
        node = changed_node(renamed, setting.node)
        value = f"{renamed.name}: {node.value}" if isinstance(node, yaml.ScalarNode) else renamed.name
        self.notices.append(f"{setting.origin}: {setting.key} is called {renamed.name} here; read as {value}.")
        self.written[renamed.name] = setting.key
        return dataclasses.replace(setting, key=renamed.name, node=node)

    def _report(self, setting: Setting, message: str) -> None:
        """Notes a problem with a key, which counts as settled from here on."""
        self.problems.append(f"{setting.origin}: {self._name_of(setting.key)}: {message}.")
        self.failed.add(setting.key)

    def _name_of(self, key: str) -> str:
        return f"{key} (written {self.written[key]})" if key in self.written else key

    def _section_is_given(self, yaml_key: str) -> bool:
        own = self.settings.pop(yaml_key, None)
        inner = next((setting for key, setting in self.settings.items() if key.startswith(yaml_key + ".")), None)
        if own is not None:
            self.origins[yaml_key] = own.origin
        elif inner is not None:
            self.origins[yaml_key] = inner.origin
        is_off = own is None or own.node.tag == NULL_TAG
        if not is_off and not isinstance(own.node, yaml.MappingNode):
            self._report(
                own,
                _OTHERS_WORDS.get(yaml_key)
                or f"expected indented `key: value` lines below it, or {{}} for its defaults, or null for none; "
                f"found {found(own.node)}",
            )
        elif is_off and own is not None and inner is None and own.node.value == "":
            self.notices.append(f"{own.origin}: {yaml_key} is empty, so it is off; {{}} takes its defaults.")
        return not is_off or inner is not None

    def _build_section(self, section_type: type, settings: dict[str, Setting], prefix: str = "") -> Any:
        """The section from the settings given, the defaults for the rest and for what is reported as wrong.

        What belongs to it is taken out of `settings`.
        """
        values: dict[str, Any] = {}
        for key in keys_of(section_type).values():
            name = prefix + key.name
            setting = settings.pop(name, None)
            try:
                if setting is not None:
                    self.origins[name] = setting.origin
                    values[key.name] = self._build_value(key.annotation, setting)
                    continue
            except CoercionError as error:
                self._report(setting, str(error))
            if key.required:
                values[key.name] = "missing"
                meaning = key.documentation.removesuffix(" Required.")
                if name not in self.failed:
                    self.problems.append(f"{self.main_source}: {name}: is required. {meaning}")
                    self.failed.add(name)
        return section_type(**values)

    def _build_value(self, annotation: Any, setting: Setting) -> Any:
        """The value of a key; of a list of records, each key of each entry is a setting of its own, at its own place.

        Raises:
            CoercionError: if it does not fit. What is wrong inside of a record is reported at once.
        """
        record = record_type(annotation)
        if record is None:
            return coerce(annotation, setting.node)
        if setting.node.tag == NULL_TAG:
            raise CoercionError(f"expected {describe(annotation)}, found nothing")
        return [self._build_record(record, entry, setting.key) for entry in entries_of(setting)]

    def _build_record(self, record: type, entry: Setting, list_key: str) -> Any:
        self.origins[entry.key] = entry.origin
        allowed = list(keys_of(record))
        settings = settings_inside(entry, record)
        if settings is None:
            self._report(entry, f"expected a mapping like {{{allowed[0]}: ...}}, found {found(entry.node)}")
            settings = {}
        built = self._build_section(record, settings, prefix=f"{entry.key}.")
        for key, setting in settings.items():
            name = key.removeprefix(f"{entry.key}.")
            hint = _hint(f"{list_key}[].{name}", f"{list_key}[].") or _suggestion_among(name, allowed)
            self.problems.append(f"{setting.origin}: {entry.key}: unknown key {name!r}.{hint}")
            # That what it was meant to be is missing would only be said because of it.
            self.failed.update({entry.key, f"{entry.key}.{find_closest(name, allowed) or name}"})
        return built

    def _extra_training_arguments(self) -> dict[str, Any]:
        """What is left over: fields of TrainingArguments, or mistakes."""
        extra: dict[str, Any] = {}
        for key, setting in self.settings.items():
            field = training_arguments_fields().get(key)
            if key in MANAGED:
                self._report(setting, f"cannot be set here: {MANAGED[key]}")
            elif field is None:
                self.problems.append(f"{setting.origin}: unknown key {key!r}.{_suggestion(key)}")
                self.failed.update(_list_of_records(key))
            else:
                self.origins[key] = setting.origin
                try:
                    extra[key] = coerce(field.annotation, setting.node)
                except CoercionError as error:
                    self._report(setting, str(error))
        return extra

    def problems_in_order(self) -> list[str]:
        """The problems, each once, in the order of the file's lines; the command line's last."""

        def place(problem: str) -> tuple[bool, int]:
            line = re.match(r".*?:(\d+): ", problem)
            return problem.startswith(f"{COMMAND_LINE}:"), int(line.group(1)) if line else 0

        return sorted(dict.fromkeys(self.problems), key=place)


def _without_none_tracker(logging: LoggingConfig) -> LoggingConfig:
    """`report_to: none` means no tracker."""
    return dataclasses.replace(logging, report_to=[name for name in logging.report_to if name.lower() != "none"])


def _list_of_records(key: str) -> dict[str, type]:
    """The list that a key like `datasets[0].path` reaches into, with the type of its entries; empty for other keys."""
    name = re.match(r"\w*", key).group()
    record = record_type(flat_keys()[name].annotation) if name in flat_keys() else None
    return {name: record} if record else {}


def _hint(key: str, place: str = "") -> str:
    """What another trainer's key is called here, without the `place` that it stands in as well."""
    return f" Here it is {HINTS[key].removeprefix(place)!r}." if key in HINTS else ""


def _suggestion_among(name: str, allowed: Sequence[str]) -> str:
    return did_you_mean(name, allowed) or f" Allowed there: {', '.join(allowed)}."


def _suggestion(key: str) -> str:
    """What an unknown key may have been meant to be."""
    if not training_arguments_fields():
        return " Keys of transformers are not known, it is not installed here: pip install -r requirements.txt."
    if key in HINTS:
        return _hint(key)
    section, _, inner = key.partition(".")
    if inner and section in NESTED_SECTIONS:
        return _suggestion_among(inner, list(keys_of(NESTED_SECTIONS[section][1])))
    for name, record in _list_of_records(key).items():
        return f" Entries are given all at once: {name}: [{{{next(iter(keys_of(record)))}: ...}}, ...]."
    known = {*flat_keys(), *NESTED_SECTIONS, *training_arguments_fields()} - MANAGED.keys()
    return did_you_mean(key, known) or " `python sft_main.py --help` lists every key."
