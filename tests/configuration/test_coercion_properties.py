"""Properties of reading: every valid value of every key survives YAML, and the command line reads the same value."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft.configuration.coercion import FALSE_WORDS, TRUE_WORDS, coerce, record_type
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.reading import read_command_line_settings
from sft.configuration.rules import MAX_STEPS, CommaSeparated, IsPath, Range, StepLimit, WholeOrShare
from sft.configuration.schema import NESTED_SECTIONS

NESTED = {
    f"{name}.{key}": keys_of(section)[key] for name, (_, section) in NESTED_SECTIONS.items() for key in keys_of(section)
}
ANNOTATIONS = {
    name: key.annotation for name, key in {**flat_keys(), **NESTED}.items() if record_type(key.annotation) is None
}
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """All values of a declared type, as a configuration holds them."""
    if get_origin(annotation) is Annotated:
        base, rule = get_args(annotation)
        return values_of_rule(base, rule)
    if get_origin(annotation) in (Union, types.UnionType):
        choices = get_args(annotation)
        # A word that also is another choice is read as that.
        taken = {"none", *(TRUE_WORDS | FALSE_WORDS if bool in choices else ())}
        return st.one_of(*map(values_of, choices)).filter(
            lambda value: not isinstance(value, str) or value.strip().lower() not in taken
        )
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is list:
        return st.lists(values_of(get_args(annotation)[0]), max_size=4)
    if get_origin(annotation) is dict:
        return st.dictionaries(TEXT, values_of(get_args(annotation)[1]), max_size=4)
    plain = {bool: st.booleans(), str: TEXT, int: st.integers(), type(None): st.none()}
    return plain.get(annotation, st.floats(allow_nan=False, allow_infinity=False))


def values_of_rule(base: Any, rule: Any) -> st.SearchStrategy[Any]:
    share = st.floats(0, 1, exclude_min=True, exclude_max=True)
    if isinstance(rule, WholeOrShare):
        return st.integers(rule.least, 2**53) | share
    if isinstance(rule, StepLimit):
        return st.just(-1) | st.integers(1, MAX_STEPS)
    if isinstance(rule, IsPath):
        return TEXT.filter(lambda text: text.strip() and not text.startswith("~"))
    if isinstance(rule, CommaSeparated):
        return st.lists(TEXT, max_size=4)
    assert isinstance(rule, Range)
    if base is int:
        return st.integers(rule.minimum, rule.maximum)
    low = rule.minimum if rule.minimum is not None else rule.above
    high = rule.maximum if rule.maximum is not None else rule.below
    return st.floats(
        low,
        high,
        exclude_min=rule.above is not None,
        exclude_max=rule.below is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def same(value: Any, expected: Any) -> bool:
    return value == expected and type(value) is type(expected)


@pytest.mark.parametrize("name", ANNOTATIONS)
@FEW
@given(data=st.data())
def test_every_value_survives_yaml(name, data):
    value = data.draw(values_of(ANNOTATIONS[name]))
    node = yaml.compose(yaml.safe_dump({name: value})).value[0][1]
    assert same(coerce(ANNOTATIONS[name], node), value)


def words_of(name: str, value: Any) -> list[str] | None:
    """A value as the words of a command line; None if there is no way to write it there."""
    if value is None:
        return ["null"]
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, dict) or value == []:
        return [yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()]
    if not isinstance(value, list):
        return [value if isinstance(value, str) else repr(value)]
    if len(value) == 1 and (
        value[0].startswith("[") or "," in value[0] or value[0] != value[0].strip() or not value[0]
    ):
        return None  # read as a list in YAML, or separated at commas
    return value


@pytest.mark.parametrize("name", ANNOTATIONS)
@FEW
@given(data=st.data())
def test_the_command_line_reads_the_same_value_as_yaml(name, data):
    value = data.draw(values_of(ANNOTATIONS[name]))
    words = words_of(name, value)
    if words is None or (value is not None and "null" in words) or "\0" in "".join(words):
        return
    if len(words) == 1:
        arguments = [f"--{name}={words[0]}"]
    elif any(word.startswith("--") for word in words):
        return
    else:
        arguments = [f"--{name}", *words]
    found = read_command_line_settings(arguments)
    assert found.problems == []
    assert same(coerce(ANNOTATIONS[name], found.settings[-1].node), value)


NUMBERS = [name for name, annotation in ANNOTATIONS.items() if not {str, dict} & {annotation, get_origin(annotation)}]


@FEW
@given(name=st.sampled_from(NUMBERS), text=TEXT)
def test_any_text_is_read_or_rejected_in_the_same_way(name, text):
    """On the command line and, quoted, in a file: both have the same value, or the same problem."""
    if get_origin(ANNOTATIONS[name]) is list and text.strip().startswith("["):
        return  # a list on the command line, and a text in quotes
    quoted = yaml.compose(yaml.safe_dump({name: text}, default_style='"')).value[0][1]
    typed = read_command_line_settings([f"--{name}={text}"]).settings
    assert [outcome(name, setting.node) for setting in typed if text != "null"] in ([], [outcome(name, quoted)])


def outcome(name: str, node: yaml.Node) -> Any:
    try:
        return coerce(ANNOTATIONS[name], node)
    except Exception as error:
        return repr(error)
