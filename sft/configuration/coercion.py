"""Conversion of YAML nodes to values of a declared type.

PyYAML reads `5e-5` as a string and `no` as a boolean, but the intended type depends on the key. Scalars therefore stay
strings until the key's declared type is known.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from sft.common.secrets import SHOWN_CHARACTERS, hide_value
from sft.common.text import counted
from sft.configuration.rules import MAX_STEPS, CommaSeparated, IsPath, Range, StepLimit, WholeOrShare

TRUE_WORDS = {"true", "yes", "on", "1"}
FALSE_WORDS = {"false", "no", "off", "0"}
NULL_TAG = "tag:yaml.org,2002:null"
_READ_BY_YAML = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")
_INTEGER = re.compile(r"[+-]?\d[\d_]*")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class CoercionError(Exception):
    """The value has the wrong type or is out of range. The message continues `key: `."""


def coerce(annotation: Any, node: yaml.Node) -> Any:
    """Convert a YAML node to the declared type of a key.

    Raises:
        CoercionError: if the node cannot be converted; says what was found and what is allowed.
    """
    if get_origin(annotation) is Annotated:
        return _coerce_annotated(annotation, node)
    if get_origin(annotation) in (Union, types.UnionType):
        return _coerce_union(annotation, node)
    if get_origin(annotation) is Literal:
        return _coerce_literal(annotation, node)
    if get_origin(annotation) is list:
        return _coerce_list(annotation, node)
    if get_origin(annotation) is dict:
        return _coerce_mapping(annotation, node)
    return _check_text(_coerce_scalar(annotation, node, describe(annotation)))


def alternatives(annotation: Any) -> list[Any]:
    """The members of a union type, without rules: `[list[str], NoneType]` for `Names | None`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for choice in get_args(annotation) for inner in alternatives(choice)]
    return [annotation]


def record_type(annotation: Any) -> type | None:
    """The dataclass of a list's entries: `DatasetSource` for `list[DatasetSource]`, None for any other type.

    Such lists are not converted by `coerce`: each key of each entry is a setting with its own line.
    """
    for choice in alternatives(annotation):
        if get_origin(choice) is list and dataclasses.is_dataclass(get_args(choice)[0]):
            record: type = get_args(choice)[0]
            return record
    return None


def describe(annotation: Any) -> str:
    """Describe a type and its bounds in words: `an integer >= 1`."""
    if get_origin(annotation) is Annotated:
        base, *rules = get_args(annotation)
        return _describe_rule(base, rules[0]) if rules else describe(base)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [describe(part) for part in get_args(annotation) if part is not type(None)]
        return " or ".join(parts) + (" or null" if type(None) in get_args(annotation) else "")
    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) is list:
        return "a list of mappings" if record_type(annotation) else "a list"
    if get_origin(annotation) is dict:
        return "a mapping"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names.get(annotation, "any value")


def found(node: yaml.Node) -> str:
    """Describe the value that was found, shortened to fit on one line."""
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {counted(len(node.value), 'item')}"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if _is_null(node):
        return "null" if node.value else "no value"
    shown = hide_value(node.value)
    text = shown if len(shown) <= 60 else shown[:SHOWN_CHARACTERS] + "..."
    return repr(text)


def plain_value(node: yaml.Node) -> Any:
    """The value as YAML reads it, for settings of unknown type; `5e-5` is a number as well."""
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain_value(value) for key, value in node.value}
    if node.tag in _READ_BY_YAML:
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, KeyError, IndexError):
            raise CoercionError(f"{found(node)} does not match its tag {node.tag!r}; remove the tag") from None
    # YAML requires a dot in 5.0e-5.
    return float(node.value) if _EXPONENT.fullmatch(node.value) else node.value


def _coerce_union(annotation: Any, node: yaml.Node) -> Any:
    choices = get_args(annotation)
    # Many people write Python's `None` for null, and no setting has a string `None`.
    if type(None) in choices and (_is_null(node) or getattr(node, "value", "") == "None"):
        return None
    # Any scalar is a valid string, so `str` is tried last; a single word is never a list of one word.
    ordered = sorted((choice for choice in choices if choice is not type(None)), key=_is_text)
    if isinstance(node, yaml.ScalarNode) and str in choices:
        ordered = [choice for choice in ordered if get_origin(choice) is not list]
    if isinstance(node, yaml.ScalarNode) and any(_is_text(choice) for choice in ordered):
        ordered = [choice for choice in ordered if get_origin(choice) is not dict]
    if isinstance(node, yaml.MappingNode) and any(get_origin(choice) is dict for choice in ordered):
        ordered = [choice for choice in ordered if get_origin(choice) is dict]
    errors = []
    for choice in ordered:
        try:
            return coerce(choice, node)
        except CoercionError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise CoercionError(f"expected {describe(annotation)}, found {found(node)}")


def _coerce_annotated(annotation: Any, node: yaml.Node) -> Any:
    base, *rules = get_args(annotation)
    if isinstance(rules[0], CommaSeparated):
        return [] if rules[0].null_is_empty and _is_null(node) else _coerce_names(node)
    # An error about the type names the bounds too.
    is_plain = get_origin(base) is None
    value = _coerce_scalar(base, node, describe(annotation)) if is_plain else coerce(base, node)
    if not isinstance(rules[0], IsPath):  # names of files are bytes on most systems
        _check_text(value)
    for rule in rules:
        value = _apply_rule(rule, value, node)
    return value


def _coerce_names(node: yaml.Node) -> list[str]:
    if isinstance(node, yaml.ScalarNode) and not _is_null(node):
        return [part.strip() for part in node.value.split(",") if part.strip()]
    if not isinstance(node, yaml.SequenceNode):
        raise CoercionError(f"expected a name or a list of names, found {found(node)}")
    return [coerce(str, item) for item in node.value]


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == NULL_TAG


def _is_text(annotation: Any) -> bool:
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return base is str


def _coerce_literal(annotation: Any, node: yaml.Node) -> Any:
    choices = get_args(annotation)
    if isinstance(node, yaml.ScalarNode):
        for choice in choices:
            if str(choice).lower() == node.value.strip().lower():
                return choice
    raise CoercionError(f"expected {describe(annotation)}, found {found(node)}")


def _coerce_list(annotation: Any, node: yaml.Node) -> list[Any]:
    (item_type,) = get_args(annotation)
    if isinstance(node, yaml.ScalarNode) and not _is_null(node):
        return [coerce(item_type, node)]
    if not isinstance(node, yaml.SequenceNode):
        raise CoercionError(f"expected a list, found {found(node)}")
    return [coerce(item_type, item) for item in node.value]


def _coerce_mapping(annotation: Any, node: yaml.Node) -> dict[str, Any]:
    _, value_type = get_args(annotation)
    if not isinstance(node, yaml.MappingNode):
        raise CoercionError(f"expected a mapping like {{a: b}}, found {found(node)}")
    return {str(key.value): coerce(value_type, value) for key, value in node.value}


def _coerce_scalar(annotation: Any, node: yaml.Node, expected: str) -> Any:
    if annotation is Any:
        return plain_value(node)
    if annotation is str and isinstance(node, yaml.MappingNode):
        raise CoercionError(f"expected {expected}, found a mapping; quote strings that contain ': '")
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise CoercionError(f"expected {expected}, found {found(node)}")
    text = node.value.strip()
    if annotation is str:
        return node.value
    if annotation is bool:
        if text.lower() in TRUE_WORDS | FALSE_WORDS:
            return text.lower() in TRUE_WORDS
    elif annotation is int:
        number = _as_number(text)
        if number is not None and number == int(number):
            return int(text) if _INTEGER.fullmatch(text) else int(number)
    elif annotation is float:
        number = _as_number(text)
        if number is not None:
            return number
    raise CoercionError(f"expected {expected}, found {found(node)}")


def _check_text(value: Any) -> Any:
    """The value, if it is not text that has no encoding, or that no file can be named: nothing could use it.

    Two escapes that JSON writes for one character (`\\ud83d\\ude00`) are that character.
    """
    if not isinstance(value, str):
        return value
    value = _PAIR.sub(lambda found: found[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)
    _refuse_nul(value)
    if _SURROGATE.search(value):
        raise CoercionError("contains an unpaired surrogate (\\ud800 to \\udfff), which is not text; write it as UTF-8")
    return value


def _refuse_nul(value: str) -> None:
    if "\0" in value:
        raise CoercionError("contains a NUL character, which no file name or text has; remove it")


def _as_number(text: str) -> float | None:
    """A finite number, including `1_000` and `5e-5`; None for any other text."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) != float("inf") and number == number else None


def _apply_rule(rule: Any, value: Any, node: yaml.Node) -> Any:
    if isinstance(rule, IsPath):
        if not value.strip():
            raise CoercionError("is empty; give a path or remove the key")
        _refuse_nul(value)
        return os.path.expanduser(value)
    if isinstance(rule, WholeOrShare):
        if value >= rule.least and value == int(value):
            return int(value)
        fits = 0 < value < 1
    elif isinstance(rule, StepLimit):
        fits = value == -1 or value >= 1
        if value > MAX_STEPS:
            raise CoercionError(f"{node.value.strip()} is out of range; a run has at most {MAX_STEPS:,} steps")
    elif isinstance(rule, Range):
        fits = rule.allows(value)
    else:
        return value
    if not fits:
        raise CoercionError(f"{node.value.strip()} is out of range; expected {_describe_rule(type(value), rule)}")
    return value


def _describe_rule(base: Any, rule: Any) -> str:
    if isinstance(rule, WholeOrShare):
        return f"an integer >= {rule.least}, or a share of all steps between 0 and 1"
    if isinstance(rule, StepLimit):
        return "an integer >= 1, or -1"
    if isinstance(rule, IsPath):
        return "a path"
    if isinstance(rule, CommaSeparated):
        return "a name or a list of names"
    if rule.minimum is not None and rule.maximum is not None:
        return f"{describe(base)} from {rule.minimum} to {rule.maximum}"
    limits = ((">=", rule.minimum), (">", rule.above), ("<=", rule.maximum), ("<", rule.below))
    return f"{describe(base)} " + " and ".join(f"{sign} {limit}" for sign, limit in limits if limit is not None)
