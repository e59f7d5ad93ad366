"""The keys that the schema declares: type, default, and the documentation below each field."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from sft.configuration.schema import FLAT_SECTIONS

NOT_KEYS = {"extra_training_arguments"}
"""Fields of a section that have no key of their own name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key of the configuration."""

    name: str
    section: str
    annotation: Any
    required: bool
    default: Any
    documentation: str


@cache
def keys_of(section: type) -> dict[str, Key]:
    """The keys of a section by name, in order of declaration."""
    annotations = get_type_hints(section, include_extras=True)
    documentation = _field_documentation(section)
    keys = {}
    for item in fields(section):
        if item.name in NOT_KEYS:
            continue
        default = item.default
        if item.default_factory is not MISSING:
            default = item.default_factory()
        keys[item.name] = Key(
            name=item.name,
            section=section.__name__,
            annotation=annotations[item.name],
            required=default is MISSING,
            default=default,
            documentation=documentation[item.name],
        )
    return keys


@cache
def flat_keys() -> dict[str, Key]:
    """All top-level keys, without the nested sections."""
    return {name: key for section in FLAT_SECTIONS.values() for name, key in keys_of(section).items()}


def _field_documentation(section: type) -> dict[str, str]:
    """The string below each field of a section, with white space collapsed."""
    documentation: dict[str, str] = {}
    body = _class_bodies(section.__module__)[section.__name__]
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        text = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            text = " ".join(str(following.value.value).split())
        documentation[statement.target.id] = text
    return documentation


@cache
def _class_bodies(module: str) -> dict[str, list[ast.stmt]]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
