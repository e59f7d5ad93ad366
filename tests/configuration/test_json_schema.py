"""The schema for editors: it accepts what the program accepts, and refuses wrong types, bounds, words and keys.

Beyond these tests, `tests.support.configurations.load` compares both for every configuration of the other tests.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config_manager import load_config
from sft.configuration.help import all_keys
from sft.configuration.installed_transformers import optimizer_names
from sft.configuration.json_schema import schema_of
from sft.configuration.values import config_to_yaml
from tests.configuration import test_coercion
from tests.configuration.test_coercion_properties import ANNOTATIONS, FEW, values_of
from tests.support.paths import REPOSITORY
from tests.support.schema_check import as_editor, violations, whole_schema

jsonschema = pytest.importorskip("jsonschema")

EXAMPLES = [
    "sample_config.yaml",
    *(f"examples/{path.name}" for path in sorted((REPOSITORY / "examples").glob("*.yaml"))),
]
UNUSUAL = {"None", "STEPS", "Auto", "[1, true]"}
"""Spellings that the program accepts and the schema does not."""
BEYOND_JSON = {"nan", ".inf"}
"""What the program refuses, and JSON has no word for."""


def table(test: Any) -> list[tuple[Any, ...]]:
    """The cases of a parametrized test."""
    return next(mark for mark in test.pytestmark if mark.name == "parametrize").args[1]


def is_accepted(text: str) -> bool:
    return violations(whole_schema(), as_editor(f"model_name_or_path: gpt2\n{text}")) == []


def entry_of(name: str) -> dict[str, Any]:
    """The schema's entry of a key like `lora_config.r` or `datasets[].path`."""
    entry = whole_schema()
    for part in name.split("."):
        entry = next(choice for choice in entry.get("anyOf", [entry]) if "properties" in choice)
        entry = entry["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            entry = next(choice for choice in entry["anyOf"] if "items" in choice)["items"]
    return entry


def test_the_schema_is_valid_and_has_every_key_with_its_default():
    jsonschema.Draft7Validator.check_schema(whole_schema())
    assert whole_schema()["required"] == ["model_name_or_path"]
    for name, key in all_keys():
        entry = entry_of(name)
        assert entry["title"].startswith(f"{name} ("), name
        assert entry["description"].startswith(key.documentation)
        assert entry.get("default") == (None if key.required else key.default)


@pytest.mark.parametrize("path", sorted(EXAMPLES))
def test_shipped_configurations_are_accepted_and_name_the_schema(path):
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    assert violations(whole_schema(), as_editor(text)) == []
    comment, _, schema = text.splitlines()[0].partition("$schema=")
    assert comment == "# yaml-language-server: "
    assert (REPOSITORY / path).parent.joinpath(schema).resolve() == REPOSITORY / "docs" / "config.schema.json"


def test_what_a_run_records_is_accepted(folder):
    arguments = [
        "--model_name_or_path=gpt2",
        "--datasets=[{path: train.jsonl}]",
        "--lora_config.r=8",
        "--adam_beta1=0.8",
    ]
    config = load_config(None, arguments)
    assert violations(whole_schema(), as_editor(config_to_yaml(config))) == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [case[:2] for case in table(test_coercion.test_coerce_returns_the_intended_value) if case[1] not in UNUSUAL],
)
def test_values_that_can_be_converted_are_accepted(annotation, text):
    assert violations(schema_of(annotation), as_editor(text)) == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        case[:2]
        for case in table(test_coercion.test_coerce_reports_what_was_found_and_what_is_allowed)
        if case[1] not in BEYOND_JSON and "!!" not in case[1]
    ],
)
def test_values_that_cannot_be_converted_are_refused(annotation, text):
    assert violations(schema_of(annotation), as_editor(text)) != []


@FEW
@given(name=st.sampled_from(sorted(ANNOTATIONS)), data=st.data())
def test_every_value_of_every_type_is_accepted(name, data):
    text = yaml.safe_dump(data.draw(values_of(ANNOTATIONS[name])))
    assert violations(schema_of(ANNOTATIONS[name]), as_editor(text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "datasets: a.jsonl",
        "datasets: [a.jsonl, {path: b.jsonl, weight: 2, format: messages}]",
        "datasets: {name: org/data, columns: {query: question}}",
        "lora_config:",
        "lora_config: {target_modules: [a, b], bias: lora_only}",
        "fsdp: {}",
        "report_to: tensorboard, wandb",
        "report_to: []",
        "optim: adamw_bf16_split",
        "eval_strategy: no",
        "neftune_noise_alpha: null",
        "deepspeed: ds.json",
        "lr_scheduler_kwargs: {min_lr: 1e-6}",
        "torch_dtype: torch.bfloat16",
        "max_length: 2048",
        "do_train: true",
    ],
)
def test_usual_settings_are_accepted(text):
    assert is_accepted(text)


@pytest.mark.parametrize(
    "text",
    [
        "learning_rat: 1e-4",
        "learning_rate: -1",
        "learning_rate: fast",
        "max_seq_length: 1",
        "per_device_train_batch_size: 0",
        "per_device_train_batch_size: many",
        "max_steps: 0",
        "eval_steps: 1.5",
        "packing: maybe",
        "packing: 2",
        "on_too_long: cut",
        "train_file: ''",
        "optim: adam",
        "lr_scheduler_type: cos",
        "report_to: [tensorbord]",
        "train_sampling_strategy: sorted",
        "datasets: [{path: a, weigth: 1}]",
        "datasets: [{path: a, format: chatml}]",
        "datasets: [{file: a}]",
        "datasets: null",
        "lora_config: {rank: 8}",
        "lora_config: true",
        "fsdp: full_shard",
        "adam_beta1: 1",
        "tf32: maybe",
        "eval_strategy: sometimes",
        "hub_strategy: never",
        "remove_unused_columns: false",
        "lr: 1e-4",
        "max_length: long",
        "12: x",
    ],
)
def test_wrong_settings_are_refused(text):
    assert not is_accepted(text)


def test_an_editor_shows_why_a_name_is_refused_and_what_a_text_should_be():
    properties = whole_schema()["properties"]
    assert properties["lr"]["errorMessage"] == "unknown key; use 'learning_rate'"
    assert properties["label_names"]["errorMessage"] == "cannot be set: labels are made from the chat template"
    assert properties["max_length"]["deprecationMessage"] == "is called max_seq_length here"
    assert properties["learning_rate"]["errorMessage"] == "expected a number >= 0"
    assert properties["optim"]["enum"] == list(optimizer_names())
    assert "Unit: tokens.\n\nWhy this default: " in properties["max_seq_length"]["description"]


def test_the_model_is_required():
    assert violations(whole_schema(), {"train_file": "a"}) == ["$: 'model_name_or_path' is a required property"]
