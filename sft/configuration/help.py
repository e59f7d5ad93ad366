"""The help text: type, default and meaning of every key, or of single ones."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft.common.did_you_mean import did_you_mean
from sft.common.errors import ConfigError
from sft.configuration.assembly import suggestion
from sft.configuration.checks.training import PASSED_THROUGH_BOUNDS
from sft.configuration.coercion import alternatives, describe, record_type
from sft.configuration.installed_transformers import TrainingArgumentsField, training_arguments_fields
from sft.configuration.keys import Key, keys_of
from sft.configuration.renamed import HINTS, MANAGED, RENAMED, WITHOUT_EFFECT
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
)

Notes = Mapping[str, Sequence[str]]
"""Key -> unit, and reason for its default."""
_NOTES = Path(__file__).parents[2] / "docs" / "configuration_notes.yaml"


def format_help() -> str:
    """Describe every key, by section."""
    lines: list[str] = []
    for section in FLAT_SECTIONS.values():
        lines += ["", (section.__doc__ or "").strip(), *_section_help(section, "")]
    for yaml_key, (_, section) in NESTED_SECTIONS.items():
        lines += ["", (section.__doc__ or "").strip(), *_section_help(section, f"{yaml_key}.")]
    lines += ["", "Any other field of the installed transformers' TrainingArguments is accepted and passed on."]
    return "\n".join(lines)


def format_key_help(names: Sequence[str]) -> str:
    """Describe single keys, with the reasons for their defaults.

    Raises:
        ConfigError: naming the unknown keys.
    """
    keys, notes = dict(all_keys()), read_notes()
    lines: list[str] = []
    problems: list[str] = []
    for given in names:
        head, dot, inner = given.removeprefix("--").partition(".")
        name = head.replace("-", "_") + dot + inner
        if name in RENAMED:
            lines.append(f"{name} is called {RENAMED[name].name} here:")
            name = RENAMED[name].name
        if name in WITHOUT_EFFECT:
            lines.append(f"{name} is no longer needed: {WITHOUT_EFFECT[name]}.")
        elif name in NESTED_SECTIONS:
            section = NESTED_SECTIONS[name][1]
            lines += [(section.__doc__ or "").strip(), *_section_help(section, f"{name}.")]
        elif name in keys:
            lines += _key_help(name, keys[name], notes)
        elif name in MANAGED:
            lines.append(f"{name} cannot be set: {MANAGED[name]}.")
        elif name in training_arguments_fields():
            lines += _passed_through_help(training_arguments_fields()[name])
        else:
            problems.append(f"command line: --help: unknown key {name!r}.{_hint(name, keys)}")
    if problems:
        raise ConfigError(*problems)
    return "\n".join(lines)


def read_notes() -> Notes:
    """The notes on each key; none where the program was installed without its documentation."""
    if not _NOTES.is_file():
        return {}
    notes: Notes = yaml.safe_load(_NOTES.read_text(encoding="utf-8"))
    return notes


def all_keys() -> Iterator[tuple[str, Key]]:
    """Every key by its full name, in order; keys of a list's entries follow the list."""
    for section in FLAT_SECTIONS.values():
        yield from keys_in(section, "")
    for name, (_, section) in NESTED_SECTIONS.items():
        yield from keys_in(section, f"{name}.")


def keys_in(section: type, prefix: str) -> Iterator[tuple[str, Key]]:
    """The keys of a section by their full names."""
    for key in keys_of(section).values():
        yield f"{prefix}{key.name}", key
        record = record_type(key.annotation)
        if record is not None:
            yield from keys_in(record, f"{key.name}[].")


def default_of(key: Key) -> str:
    """`required`, or the default in words."""
    return "required" if key.required else f"default {_shown(key.default)}"


def passed_default(field: TrainingArgumentsField) -> str:
    """The default of a passed-through field in transformers; the program itself sets some of them."""
    return f"default in transformers {field.default}" if field.default else "default: see transformers"


def passed_type(field: TrainingArgumentsField) -> Any:
    """The type of a passed-through field, with the bounds that are checked here."""
    bounded = PASSED_THROUGH_BOUNDS.get(field.name)
    if bounded is None:
        return field.annotation
    return bounded | None if type(None) in alternatives(field.annotation) else bounded


def _hint(name: str, keys: Mapping[str, Key]) -> str:
    """What an unknown name was meant to be: another trainer's, one inside a section, or a similar one."""
    inside = [full for full in keys if full.rpartition(".")[2] == name]
    known = "" if name in HINTS else did_you_mean(inside[0] if inside else name, keys)
    return known or suggestion(name)


def _section_help(section: type, prefix: str) -> list[str]:
    return [line for name, key in keys_in(section, prefix) for line in _help_lines(key, name)]


def _key_help(name: str, key: Key, notes: Notes) -> list[str]:
    unit, why = notes.get(name, ("", ""))
    lines = _help_lines(key, name)
    lines += _wrapped(f"Unit: {unit}.") if unit else []
    lines += _wrapped(f"Why this default: {why}.") if why else []
    record = record_type(key.annotation)
    return lines if record is None else [*lines, *_section_help(record, f"{name}[].")]


def _passed_through_help(field: TrainingArgumentsField) -> list[str]:
    lines = [f"  --{field.name}  ({describe(passed_type(field))}; {passed_default(field)})"]
    return [*lines, *_wrapped(f"{field.documentation} Passed on to transformers' TrainingArguments.")]


def _help_lines(key: Key, name: str) -> list[str]:
    option = name if "[]" in name else f"--{name}"  # keys of a list's entries are not options
    return [f"  {option}  ({describe(key.annotation)}; {default_of(key)})", *_wrapped(key.documentation)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
