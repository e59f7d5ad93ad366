"""Conversion of YAML nodes to declared types, and messages about values that do not match."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pytest
import yaml

from config_manager import ConfigError, load_config
from sft.common.did_you_mean import did_you_mean, find_closest
from sft.configuration.coercion import CoercionError, alternatives, coerce, describe, found, plain_value, record_type
from sft.configuration.installed_transformers import optimizer_names, scheduler_names, training_arguments_fields
from sft.configuration.rules import (
    CommaSeparated,
    Names,
    PathText,
    PositiveInt,
    Range,
    Share,
    StepLimit,
    Steps,
    WholeShare,
)
from sft.configuration.schema import DatasetSource
from tests.support import messages

TrackerNames = Annotated[list[str], CommaSeparated(null_is_empty=True)]
Seed = Annotated[int, Range(minimum=0, maximum=9)]


def node_of(text: str) -> yaml.Node:
    return yaml.compose(text)


@pytest.mark.parametrize(
    ("annotation", "text", "expected"),
    [
        (float, "5e-5", 5e-5),
        (float, "5E-5", 5e-5),
        (float, "1_000.5", 1000.5),
        (float, '"3"', 3.0),
        (float, "-0.5", -0.5),
        (float, " 2 ", 2.0),
        (int, "1_000", 1000),
        (int, '"3"', 3),
        (int, "1e3", 1000),
        (int, "3.0", 3),
        (int, "017", 17),
        (int, "-7", -7),
        (int, "123456789012345678901", 123456789012345678901),
        (bool, "yes", True),
        (bool, "no", False),
        (bool, "On", True),
        (bool, "OFF", False),
        (bool, '"true"', True),
        (bool, "0", False),
        (bool, "1", True),
        (str, "2024", "2024"),
        (str, "no", "no"),
        (str, "1.10", "1.10"),
        (str, "2024-01-01", "2024-01-01"),
        (str, '" kept "', " kept "),
        (str, "naïve 😀", "naïve 😀"),
        (str | None, "null", None),
        (str | None, "~", None),
        (str | None, "None", None),
        (str | None, '"null"', "null"),
        (int | None, "None", None),
        (bool | Literal["auto"], "auto", "auto"),
        (bool | Literal["auto"], "no", False),
        (bool | PathText | None, "auto", "auto"),
        (bool | PathText | None, "yes", True),
        (Literal["no", "steps"], "no", "no"),
        (Literal["no", "steps"], "STEPS", "steps"),
        (list[str], "one", ["one"]),
        (list[str], "hi, you", ["hi, you"]),
        (list[str], "[1, true]", ["1", "true"]),
        (Names, "a, b,c", ["a", "b", "c"]),
        (Names, "[a, b]", ["a", "b"]),
        (Names, "[]", []),
        (Names | None, "null", None),
        (TrackerNames, "null", []),
        (None | str | list[str], "all-linear", "all-linear"),
        (None | str | list[str], "[a]", ["a"]),
        (dict[str, str], "{a: 1, 2: b}", {"a": "1", "2": "b"}),
        (dict[str, Any] | str | None, "{a: 1e-3}", {"a": 1e-3}),
        (dict[str, Any] | str | None, "ds.json", "ds.json"),
        (Steps, "0.25", 0.25),
        (Steps, "1e2", 100),
        (Annotated[int, StepLimit()], "-1", -1),
        (Share, "0", 0.0),
        (WholeShare, "1", 1.0),
        (PositiveInt | Literal["auto"], "Auto", "auto"),
        (PositiveInt | Literal["auto"], "1e1", 10),
        (Seed, "9", 9),
    ],
)
def test_coerce_returns_the_intended_value(annotation, text, expected):
    value = coerce(annotation, node_of(text))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "text", "message"),
    [
        (int, "4k", "expected an integer, found '4k'"),
        (int, "0.5", "expected an integer, found '0.5'"),
        (int, "true", "expected an integer, found 'true'"),
        (int, "[1, 2]", "expected an integer, found a list of 2 items"),
        (int, "", "expected an integer, found no value"),
        (float, "nan", "expected a number, found 'nan'"),
        (float, ".inf", "expected a number, found '.inf'"),
        (float, "inf", "expected a number, found 'inf'"),
        (float, "1,000", "expected a number, found '1,000'"),
        (float, "{a: b}", "expected a number, found a mapping"),
        (bool, "2", "expected true or false, found '2'"),
        (bool, "maybe", "expected true or false, found 'maybe'"),
        (str, "What is: this", "expected a string, found a mapping; quote strings that contain ': '"),
        (str, "null", "expected a string, found null"),
        (PathText, '""', "is empty; give a path or remove the key"),
        (PositiveInt, "0", "0 is out of range; expected an integer >= 1"),
        (PositiveInt, "x", "expected an integer >= 1, found 'x'"),
        (Seed, "10", "10 is out of range; expected an integer from 0 to 9"),
        (Share, "1", "1 is out of range; expected a number >= 0 and < 1"),
        (WholeShare, "1.01", "1.01 is out of range; expected a number from 0 to 1"),
        (PositiveInt | Literal["auto"], "0", "expected an integer >= 1 or auto, found '0'"),
        (Steps, "1.5", "1.5 is out of range; expected an integer >= 1, or a share of all steps between 0 and 1"),
        (Steps, "0", "0 is out of range; expected an integer >= 1, or a share of all steps between 0 and 1"),
        (Annotated[int, StepLimit()], "-2", "-2 is out of range; expected an integer >= 1, or -1"),
        (Annotated[int, StepLimit()], "0", "0 is out of range; expected an integer >= 1, or -1"),
        (Literal["a", "b"], "c", "expected a | b, found 'c'"),
        (bool | Literal["auto"], "x", "expected true or false or auto, found 'x'"),
        (Names, "{a: b}", "expected a name or a list of names, found a mapping"),
        (Names, "null", "expected a name or a list of names, found null"),
        (dict[str, str], "a", "expected a mapping like {a: b}, found 'a'"),
        (dict[str, Any] | str, "{a: !!int b}", "'b' does not match its tag 'tag:yaml.org,2002:int'; remove the tag"),
    ],
)
def test_coerce_reports_what_was_found_and_what_is_allowed(annotation, text, message):
    node = node_of(text) if text else yaml.ScalarNode("tag:yaml.org,2002:null", "")
    with pytest.raises(CoercionError) as caught:
        coerce(annotation, node)
    assert str(caught.value) == message


def test_coerce_expands_the_home_folder_of_a_path_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert coerce(PathText, node_of("~/runs")) == "/home/someone/runs"
    assert coerce(str, node_of("~/runs")) == "~/runs"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("-2E6", -2e6),
        ("1.5", 1.5),
        ("3", 3),
        ("no", False),
        ("~", None),
        ("word", "word"),
        ('"3"', "3"),
        ("2024-13-45", "2024-13-45"),
        ("[1, [x, null]]", [1, ["x", None]]),
        ("{a: {b: [5e-5]}}", {"a": {"b": [5e-5]}}),
    ],
)
def test_plain_value_reads_untyped_values_as_intended(text, expected):
    value = plain_value(node_of(text))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, "an integer"),
        (PositiveInt | None, "an integer >= 1 or null"),
        (Annotated[float, Range(above=0)], "a number > 0"),
        (Annotated[float, Range(above=0, below=1)], "a number > 0 and < 1"),
        (Seed, "an integer from 0 to 9"),
        (bool | Literal["auto"], "true or false or auto"),
        (Names, "a name or a list of names"),
        (PathText, "a path"),
        (list[str], "a list"),
        (list[DatasetSource], "a list of mappings"),
        (Any, "any value"),
    ],
)
def test_describe_names_a_type_in_words(annotation, expected):
    assert describe(annotation) == expected


def test_alternatives_looks_through_unions_and_rules():
    assert alternatives(Names | PathText | None) == [list[str], str, type(None)]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (list[DatasetSource], DatasetSource),
        (Annotated[list[DatasetSource], "rule"] | None, DatasetSource),
        (list[str], None),
        (Names | None, None),
        (DatasetSource, None),
        (dict[str, str], None),
        (Any, None),
    ],
)
def test_record_type_is_the_dataclass_of_a_list(annotation, expected):
    assert record_type(annotation) is expected


def test_found_shortens_long_text():
    assert found(node_of("x" * 100)) == repr("x" * 57 + "...")


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("learning_rat", ["learning_rate", "seed"], " Did you mean 'learning_rate'?"),
        ("LEARNING_RATE", ["learning_rate"], " Did you mean 'learning_rate'?"),
        ("tiny.jsonl", ["Tiny.jsonl"], " Did you mean 'Tiny.jsonl'?"),
        ("banana", ["learning_rate"], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean_suggests_only_similar_names(name, known, expected):
    assert did_you_mean(name, known) == expected
    assert (find_closest(name, known) is None) == (expected == "")


def test_installed_fields_have_the_types_that_transformers_declares():
    fields = training_arguments_fields()
    assert fields["adam_beta1"].annotation is float
    assert fields["ddp_timeout"].annotation is int
    assert fields["tf32"].annotation == bool | None
    assert fields["fsdp_config"].annotation == dict[str, Any] | str | None
    assert fields["eval_strategy"].annotation == Literal["no", "steps", "epoch"]
    assert "learning_rat" not in fields


def test_installed_fields_are_those_of_the_imported_class():
    declared = {field.name for field in dataclasses.fields(pytest.importorskip("transformers").TrainingArguments)}
    assert {name for name in declared if not name.startswith("_")} == set(training_arguments_fields())


def test_optimizer_and_scheduler_names_are_read_from_transformers():
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"} <= set(optimizer_names())
    assert {"linear", "cosine", "constant_with_warmup"} <= set(scheduler_names())


MODEL_AND_FILE = ["--model_name_or_path", "gpt2", "--train_file", "a\udce9.jsonl"]


@pytest.mark.parametrize("surrogate", ["\ud800", "\udce9"])  # noqa: PT014  (they are not equal)
@pytest.mark.parametrize("key", ["run_name", "sample_prompts", "chat_template", "optim_args", "dataset_columns.query"])
def test_text_that_has_no_encoding_is_refused_in_one_line(key, surrogate):
    with pytest.raises(ConfigError) as caught:
        load_config(
            None, ["--model_name_or_path", "gpt2", "--train_file", "a\udce9.jsonl", f"--{key}", f"a{surrogate}"]
        )
    assert sum("surrogate" in problem for problem in caught.value.problems) == 1  # names of files may be any bytes
    assert messages.SURROGATE in str(caught.value)


@pytest.mark.parametrize(
    "key", ["output_dir", "model_name_or_path", "train_file", "logging_dir", "run_name", "sample_prompts"]
)
def test_a_nul_character_is_refused_in_one_line(key):
    given = {"model_name_or_path": "gpt2", "train_file": "a.jsonl", key: "a\0b"}
    with pytest.raises(ConfigError) as caught:
        load_config(None, [word for name, value in given.items() for word in (f"--{name}", value)])
    assert sum(f"{key}: contains a NUL character" in problem for problem in caught.value.problems) == 1


def test_a_row_length_beyond_any_array_is_refused():
    with pytest.raises(ConfigError, match="max_seq_length: 9223372036854775808 is out of range"):
        load_config(None, ["--model_name_or_path", "gpt2", "--train_file", "a.jsonl", "--max_seq_length", f"{2**63}"])
