"""The help text: type, default and meaning of every key."""

from __future__ import annotations

import textwrap
from typing import Any

from sft.configuration.coercion import describe, record_type
from sft.configuration.keys import Key, keys_of
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
)


def format_help() -> str:
    """Describe every key, by section."""
    lines: list[str] = []
    for section in FLAT_SECTIONS.values():
        lines += ["", (section.__doc__ or "").strip(), *_section_help(section, "--")]
    for yaml_key, (_, section) in NESTED_SECTIONS.items():
        lines += ["", (section.__doc__ or "").strip(), *_section_help(section, f"--{yaml_key}.")]
    lines += ["", "Any other field of the installed transformers' TrainingArguments is accepted and passed on."]
    return "\n".join(lines)


def _section_help(section: type, prefix: str) -> list[str]:
    lines: list[str] = []
    for key in keys_of(section).values():
        lines += _help_lines(key, f"{prefix}{key.name}")
        record = record_type(key.annotation)
        if record is not None:  # keys of the list's entries, not options
            lines += _section_help(record, f"{key.name}[].")
    return lines


def _help_lines(key: Key, name: str) -> list[str]:
    default = "required" if key.required else f"default {_shown(key.default)}"
    meaning = textwrap.wrap(key.documentation, width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [f"  {name}  ({describe(key.annotation)}; {default})", *meaning]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)
