"""Building a checked `SFTConfig` from settings with origins; all problems are reported at once."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from sft.common.did_you_mean import did_you_mean, find_closest
from sft.common.errors import ConfigError
from sft.common.secrets import HIDDEN, hide, hide_value, looks_secret
from sft.configuration.batch_sizes import with_auto_sizes
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.checks.find import find_contradictions
from sft.configuration.checks.notices import find_notices
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
from sft.configuration.renamed import HINTS, MANAGED, REJECTED_VALUES, RENAMED, WITHOUT_EFFECT, converted_node
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    LoggingConfig,
    SFTConfig,
)

_SECTION_HINTS = {
    "fsdp": "expected a section with the keys checkpoints (full | sharded) and reshard_after_forward (true | false), "
    "or fsdp: {} for the defaults"
}
"""Messages for sections for which other trainers expect a string."""


class ConfigBuilder:
    """Collects settings and problems; `finish` returns the configuration or raises all problems at once."""

    def __init__(self, main_source: str) -> None:
        self.main_source = main_source
        """Origin of problems with missing keys: the file, or the command line if there is no file."""
        self.settings: dict[str, Setting] = {}
        self.origins: dict[str, str] = {}
        self.failed: set[str] = set()
        """Keys already reported as invalid. Further problems with them are not shown."""
        self.written: dict[str, str] = {}
        """Current name of a key -> the old name under which it was given."""
        self.problems: list[str] = []
        self.notices: list[str] = []
        self.secrets: set[str] = set()
        """Values that no message may quote."""

    def add(
        self, settings: Sequence[Setting], problems: Sequence[str], invalid: Sequence[str], secrets: Iterable[str]
    ) -> None:
        """Add settings, which override those added before."""
        self.secrets.update(secrets)
        self.problems += problems
        self.failed.update(invalid)
        given_here: dict[str, Setting] = {}
        for setting in settings:
            translated = self._translate(setting)
            if translated is None:
                continue
            other = given_here.get(translated.key)
            if other is not None and setting.origin != COMMAND_LINE:
                also = "" if setting.key == translated.key else f" as {translated.key}"
                self.problems.append(
                    f"{setting.origin}: {setting.key}: is also given in {other.origin}{also}. Keep one."
                )
            given_here[translated.key] = translated
            self._put(translated)

    def _put(self, setting: Setting) -> None:
        section, _, inner = setting.key.partition(".")
        if section in NESTED_SECTIONS and not inner and setting.node.tag == NULL_TAG:
            # `--lora_config null` disables a section of the file, with all its keys.
            for key in [key for key in self.settings if key.startswith(section + ".")]:
                del self.settings[key]
        elif section not in NESTED_SECTIONS and inner and takes_mapping(section):
            # `--dataset_columns.query question` adds an entry to the existing mapping.
            before = self.settings.get(section)
            node = with_entry(before.node if before else None, inner, setting.node)
            setting = dataclasses.replace(setting, key=section, node=node)
        self.settings[setting.key] = setting

    def finish(self) -> SFTConfig:
        """Build and check the configuration.

        Raises:
            ConfigError: with all problems, in the order of the file.
        """
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
        notices = (*self.notices, *find_notices(config))
        return dataclasses.replace(config, notices=tuple(hide(notice, self.secrets) for notice in notices))

    def _follows_from_a_failure(self, contradiction: Contradiction) -> bool:
        """Whether a contradiction involves a key that was already reported as invalid.

        Messages name the keys that are involved; inside a section or entry, without its prefix.
        """
        key = contradiction.key
        words = re.findall(r"[\w.]*\w", contradiction.message)
        inside = [f"{prefix}.{word}" for prefix in (key, key.rpartition(".")[0]) for word in words]
        return bool(self.failed.intersection({key, *words, *inside}))

    def _translate(self, setting: Setting) -> Setting | None:
        """The setting under its current name; None if it is ignored."""
        if setting.key in WITHOUT_EFFECT:
            self.notices.append(f"{setting.origin}: {setting.key} is no longer needed: {WITHOUT_EFFECT[setting.key]}.")
            return None
        renamed = RENAMED.get(setting.key)
        if renamed is None:
            self.written.pop(setting.key, None)
            return setting
        node = converted_node(renamed, setting.node)
        is_shown = isinstance(node, yaml.ScalarNode) and not looks_secret(renamed.name)
        value = f"{renamed.name}: {hide_value(node.value)}" if is_shown else renamed.name
        self.notices.append(f"{setting.origin}: {setting.key} is called {renamed.name} here; using {value}.")
        self.written[renamed.name] = setting.key
        return dataclasses.replace(setting, key=renamed.name, node=node)

    def _report(self, setting: Setting, message: str) -> None:
        """Report a problem with a key; further problems with it are not shown."""
        self.problems.append(f"{setting.origin}: {self._name_of(setting.key)}: {message}.")
        self.failed.add(setting.key)

    def _name_of(self, key: str) -> str:
        return f"{key} (given as {self.written[key]})" if key in self.written else key

    def _section_is_given(self, yaml_key: str) -> bool:
        """Whether a nested section is enabled, by a mapping or by keys inside it. Removes its own setting."""
        own = self.settings.pop(yaml_key, None)
        inner = next((setting for key, setting in self.settings.items() if key.startswith(yaml_key + ".")), None)
        given = own or inner
        if given is not None:
            self.origins[yaml_key] = given.origin
        if own is None or isinstance(own.node, yaml.MappingNode):
            return given is not None
        if own.node.tag != NULL_TAG:
            expected = "expected indented `key: value` lines, {} for the defaults, or null to disable it"
            self._report(own, _SECTION_HINTS.get(yaml_key) or f"{expected}; found {found(own.node)}")
            return True
        if inner is None and own.node.value == "":
            self.notices.append(f"{own.origin}: {yaml_key} is empty, so it is disabled; use {{}} for the defaults.")
        return inner is not None

    def _build_section(self, section_type: type, settings: dict[str, Setting], prefix: str = "") -> Any:
        """Build a section from its settings, which are removed from `settings`. Invalid ones get their defaults."""
        values: dict[str, Any] = {}
        for key in keys_of(section_type).values():
            name = prefix + key.name
            setting = settings.pop(name, None)
            if setting is not None:
                self.origins[name] = setting.origin
                try:
                    values[key.name] = self._build_value(key.annotation, setting)
                    continue
                except CoercionError as error:
                    why = REJECTED_VALUES.get(name, {}).get(str(setting.node.value).lower())
                    self._report(setting, f"{error} ({why})" if why else str(error))
            if key.required:
                values[key.name] = "missing"
                meaning = key.documentation.removesuffix(" Required.")
                if name not in self.failed:
                    self.problems.append(f"{self.main_source}: {name}: is required. {meaning}")
                    self.failed.add(name)
        return section_type(**values)

    def _build_value(self, annotation: Any, setting: Setting) -> Any:
        """Convert the value of a key. In a list of records, each key of each entry is a setting with its own origin.

        Raises:
            CoercionError: if the value is invalid. Problems inside a record are reported instead.
        """
        record = record_type(annotation)
        if record is None:
            return coerce(annotation, setting.node)
        if setting.node.tag == NULL_TAG:
            raise CoercionError(f"expected {describe(annotation)}, found {found(setting.node)}")
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
            # Do not report the intended key as missing.
            self.failed.update({entry.key, f"{entry.key}.{find_closest(name, allowed) or name}"})
        return built

    def _extra_training_arguments(self) -> dict[str, Any]:
        """Convert the remaining settings: fields of TrainingArguments, or unknown keys."""
        extra: dict[str, Any] = {}
        for key, setting in self.settings.items():
            field = training_arguments_fields().get(key)
            if key in MANAGED:
                self._report(setting, f"cannot be set: {MANAGED[key]}")
            elif field is None:
                self.problems.append(f"{setting.origin}: unknown key {key!r}.{suggestion(key)}")
                self.failed.update(_list_of_records(key))
            else:
                self.origins[key] = setting.origin
                try:
                    extra[key] = coerce(field.annotation, setting.node)
                    if HIDDEN in str(extra[key]):
                        self._report(
                            setting,
                            f"contains {HIDDEN}, which stands for a secret in the records of a run; write the secret",
                        )
                except CoercionError as error:
                    self._report(setting, str(error))
        return extra

    def problems_in_order(self) -> list[str]:
        """Problems without duplicates and secrets, ordered by line; those of the command line last."""

        def position(problem: str) -> tuple[bool, int]:
            line = re.match(r".*?:(\d+): ", problem)
            return problem.startswith(f"{COMMAND_LINE}:"), int(line.group(1)) if line else 0

        return [hide(problem, self.secrets) for problem in sorted(dict.fromkeys(self.problems), key=position)]


def _without_none_tracker(logging: LoggingConfig) -> LoggingConfig:
    """`report_to: none` means no tracker."""
    return dataclasses.replace(logging, report_to=[name for name in logging.report_to if name.lower() != "none"])


def _list_of_records(key: str) -> dict[str, type]:
    """For a key like `datasets[0].path`: the name of the list and the type of its entries. Empty for other keys."""
    name = re.split(r"\W", key, maxsplit=1)[0]
    record = record_type(flat_keys()[name].annotation) if name in flat_keys() else None
    return {name: record} if record else {}


def _hint(key: str, prefix: str = "") -> str:
    """Suggest our name of another trainer's key, shown without `prefix`."""
    return f" Use {HINTS[key].removeprefix(prefix)!r} instead." if key in HINTS else ""


def _suggestion_among(name: str, allowed: Sequence[str]) -> str:
    return did_you_mean(name, allowed) or f" Allowed: {', '.join(allowed)}."


def suggestion(key: str) -> str:
    """Suggest what an unknown key was meant to be."""
    if not training_arguments_fields():
        return " transformers is not installed, so its keys are unknown: pip install -r requirements.txt."
    if key in HINTS:
        return _hint(key)
    section, _, inner = key.partition(".")
    if inner and section in NESTED_SECTIONS:
        return _suggestion_among(inner, list(keys_of(NESTED_SECTIONS[section][1])))
    for name, record in _list_of_records(key).items():
        return f" Give all entries at once: {name}: [{{{next(iter(keys_of(record)))}: ...}}, ...]."
    known = {*flat_keys(), *NESTED_SECTIONS, *training_arguments_fields()} - MANAGED.keys()
    return did_you_mean(key, known) or " `python sft_main.py --help` lists all keys."
