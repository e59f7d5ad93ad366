"""Configuration files as an editor checks them: YAML 1.2, and the schema made from the installed packages."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml

from sft.configuration.help import read_notes
from sft.configuration.json_schema import config_schema

try:
    import jsonschema
except ImportError:  # only development needs it
    jsonschema = None

OF_THE_SCHEMA = re.compile(r": expected (?!name=)|is out of range; expected |unknown key |cannot be set: ")
"""Problems with one value or key. The schema knows no contradictions between keys."""
UNUSUAL = ("report_to: None", "on_too_long: DROP", "lora_config.r:")
"""Spellings that the program accepts and the schema does not."""


class EditorLoader(yaml.SafeLoader):
    """Reads YAML 1.2 as the YAML language server does: `5e-5` is a number, and `no` is a string."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (yaml declares it so)


def _resolve(name: str, expression: str, first: str, construct: Any) -> None:
    EditorLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(expression), list(first))
    EditorLoader.add_constructor(f"tag:yaml.org,2002:{name}", lambda loader, node: construct(node.value))


_resolve("null", r"(?:~|null|Null|NULL|)\Z", "~nN\0", lambda text: None)
_resolve("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF", lambda text: text.lower() == "true")
_resolve("int", r"[-+]?[0-9]+\Z", "-+0123456789", int)
_resolve("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", "-+.0123456789", float)
EditorLoader.yaml_implicit_resolvers[""] = EditorLoader.yaml_implicit_resolvers.pop("\0")


def as_editor(text: str) -> Any:
    """The values of a YAML text."""
    return yaml.load(text, EditorLoader)


def violations(schema: dict[str, Any], value: Any) -> list[str]:
    """What an editor underlines."""
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(value)]


@cache
def whole_schema() -> dict[str, Any]:
    """The schema of a configuration file."""
    return config_schema(read_notes())


def check_schema_agrees(text: str, problems: list[str]) -> None:
    """Assert that the schema accepts a file without problems, and refuses one with a wrong type, word, bound or key."""
    if jsonschema is None or "&" in text:  # an alias may stand for more than memory holds
        return
    try:
        values = as_editor(text)
    except (yaml.YAMLError, TypeError):
        return
    found = violations(whole_schema(), values or {})
    if not problems:
        assert found == [] or any(spelling in text for spelling in UNUSUAL)
    elif any(OF_THE_SCHEMA.search(problem) for problem in problems):
        assert found != [], problems
