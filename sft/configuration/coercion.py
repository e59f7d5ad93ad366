"""YAML nodes to values of a declared type.

PyYAML reads `5e-5` as a string and `no` as a boolean; what a user meant depends on the key. So scalars stay text until
the key's declared type is known.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from sft.configuration.rules import CommaSeparated, IsPath, Range, StepLimit, WholeOrShare

TRUE_WORDS = {"true", "yes", "on", "1"}
FALSE_WORDS = {"false", "no", "off", "0"}
NULL_TAG = "tag:yaml.org,2002:null"
_READ_BY_YAML = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_INTEGER = re.compile(r"[+-]?\d[\d_]*")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class CoercionError(Exception):
    """The value does not fit. The text reads on after `key: `: what was found, what is allowed."""


def coerce(annotation: Any, node: yaml.Node) -> Any:
    """The value that `node` means where a value of type `annotation` is expected.

    Raises:
        CoercionError: with what was found and what is allowed.
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
    return _coerce_scalar(annotation, node, describe(annotation))


def alternatives(annotation: Any) -> list[Any]:
    """The types that a declared type is made of, rules left out: `Names | None` gives `[list[str], NoneType]`."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [inner for choice in get_args(annotation) for inner in alternatives(choice)]
    return [annotation]


def record_type(annotation: Any) -> type | None:
    """The dataclass of a list's entries, `DatasetSource` for `list[DatasetSource]`; None for any other type.

    Such a list is not read by `coerce`: each key of each entry is a setting of its own, with its own place.
    """
    for choice in alternatives(annotation):
        if get_origin(choice) is list and dataclasses.is_dataclass(get_args(choice)[0]):
            return get_args(choice)[0]
    return None


def describe(annotation: Any) -> str:
    """A type as a person would name it, with its bounds: `a whole number from 1 up`."""
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
        return "a mapping of names"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(annotation, "any value")


def found(node: yaml.Node) -> str:
    """What stands there, short enough for one line."""
    if isinstance(node, yaml.SequenceNode):
        return f"a list of {len(node.value)}"
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if _is_null(node):
        return "nothing"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    return repr(text)


def plain_value(node: yaml.Node) -> Any:
    """The value as YAML itself reads it, for settings whose type is not known here."""
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {key.value: plain_value(value) for key, value in node.value}
    if node.tag in _READ_BY_YAML:
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, KeyError):
            raise CoercionError(f"{found(node)} does not fit its tag {node.tag!r}; leave the tag out") from None
    # YAML wants a dot in 5e-5; people do not.
    return float(node.value) if _EXPONENT.fullmatch(node.value) else node.value


def _coerce_union(annotation: Any, node: yaml.Node) -> Any:
    choices = get_args(annotation)
    # Python's `None` is what many write for null; none of our texts can be meant by it.
    if type(None) in choices and (_is_null(node) or getattr(node, "value", "") == "None"):
        return None
    # Text takes anything, so it is asked last; but one word, where a word or a list may stand, is a word.
    ordered = sorted((choice for choice in choices if choice is not type(None)), key=_is_text)
    if isinstance(node, yaml.ScalarNode) and str in choices:
        ordered = [choice for choice in ordered if get_origin(choice) is not list]
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
    raise CoercionError(f"{found(node)} is not allowed; give {describe(annotation)}")


def _coerce_annotated(annotation: Any, node: yaml.Node) -> Any:
    base, *rules = get_args(annotation)
    if isinstance(rules[0], CommaSeparated):
        return [] if rules[0].null_is_empty and _is_null(node) else _coerce_names(node)
    # The bounds are part of what is allowed, so a wrong type is answered with them too.
    is_plain = get_origin(base) is None
    value = _coerce_scalar(base, node, describe(annotation)) if is_plain else coerce(base, node)
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
    raise CoercionError(f"{found(node)} is not allowed; choose {describe(annotation)}")


def _coerce_list(annotation: Any, node: yaml.Node) -> list:
    (item_type,) = get_args(annotation)
    if isinstance(node, yaml.ScalarNode) and not _is_null(node):
        return [coerce(item_type, node)]
    if not isinstance(node, yaml.SequenceNode):
        raise CoercionError(f"expected a list, found {found(node)}")
    return [coerce(item_type, item) for item in node.value]


def _coerce_mapping(annotation: Any, node: yaml.Node) -> dict:
    _, value_type = get_args(annotation)
    if not isinstance(node, yaml.MappingNode):
        raise CoercionError(f"expected a mapping like {{a: b}}, found {found(node)}")
    return {str(key.value): coerce(value_type, value) for key, value in node.value}


def _coerce_scalar(annotation: Any, node: yaml.Node, expected: str) -> Any:
    if annotation is Any:
        return plain_value(node)
    if annotation is str and isinstance(node, yaml.MappingNode):
        raise CoercionError(f"expected {expected}, found a mapping; text that holds ': ' needs quotes")
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


def _as_number(text: str) -> float | None:
    """A finite number, `1_000` and `5e-5` included; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) != float("inf") and number == number else None


def _apply_rule(rule: Any, value: Any, node: yaml.Node) -> Any:
    if isinstance(rule, IsPath):
        if not value.strip():
            raise CoercionError("is empty; give a path, or leave the key out")
        return os.path.expanduser(value)
    if isinstance(rule, WholeOrShare):
        if value >= rule.least and value == int(value):
            return int(value)
        fits = 0 < value < 1
    elif isinstance(rule, StepLimit):
        fits = value == -1 or value >= 1
    elif isinstance(rule, Range):
        fits = (
            (rule.minimum is None or value >= rule.minimum)
            and (rule.above is None or value > rule.above)
            and (rule.maximum is None or value <= rule.maximum)
            and (rule.below is None or value < rule.below)
        )
    else:
        return value
    if not fits:
        raise CoercionError(f"{node.value.strip()} is out of range; give {_describe_rule(type(value), rule)}")
    return value


def _describe_rule(base: Any, rule: Any) -> str:
    if isinstance(rule, WholeOrShare):
        return f"a whole number from {rule.least} up, or a share between 0 and 1"
    if isinstance(rule, StepLimit):
        return "a whole number from 1 up, or -1"
    if isinstance(rule, IsPath):
        return "a path"
    if isinstance(rule, CommaSeparated):
        return "a name or a list of names"
    lower = f"above {rule.above}" if rule.above is not None else f"from {rule.minimum}"
    if rule.maximum is not None:
        return f"{describe(base)} {lower} to {rule.maximum}"
    if rule.below is not None:
        return f"{describe(base)} {lower} and below {rule.below}"
    return f"{describe(base)} {lower}" + (" up" if rule.above is None else "")
