"""The configuration as YAML and as a digest."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from config_manager import load_config
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.schema import (
    NESTED_SECTIONS,
    LoRAConfig,
)
from sft.configuration.values import config_sha256, config_to_yaml
from tests.support.configurations import MODEL, load, reloaded, value_of


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lora_config: {}\n",
        "lora_config: {r: 4, lora_alpha: 8, modules_to_save: [lm_head]}\nquantization_config: {load_in_8bit: yes}\n",
        "learning_rate: 5e-5\nsave_steps: 0.3\nlogging_steps: 1e2\nmax_steps: -1\nseed: 4294967295\n",
        "report_to: none\nsample_prompts: []\nsave_total_limit: null\nresume_from_checkpoint: auto\n",
        "run_name: 'null'\nwandb_project: '2024-01-01'\nattn_implementation: 'yes'\nreport_to: wandb\n",
        "run_name: \"a\\n\\tb: 'c' # \\x01\\u2028 é 😀\"\n",
        "chat_template: |\n  {%- for m in messages %}\n  {{ m }}  \n  {% endfor %}\n",
        "sample_prompts: ['a, b', 'c: d', '5e-5', '', ' x ', '~']\ndataset_columns: {'1': 'no', a.b: c}\n",
        "lr_scheduler_kwargs: {a: 1e-5, b: [1, 1.0, null], c: {d: no, e: '3', f: 2024-01-01}}\n",
        "save_strategy: no\ntf32: null\nadam_epsilon: 1e-8\noptim_target_modules: all-linear\n",
        "output_dir: ~/somewhere\n",
        f"run_name: {'word ' * 60}\n",
        "on_too_long: error\ntrain_on: last\nadd_end_token: yes\npreprocessing_num_workers: 3\ndata_cache_dir: ~/c\n",
        "streaming: yes\nmax_steps: 9\nshuffle_block_rows: 1\non_bad_rows: skip\nmax_bad_row_share: 1\n",
    ],
)
def test_config_to_yaml_reads_back_to_the_same_configuration(text):
    config = load(text)
    again = reloaded(config)
    assert again == dataclasses.replace(config, notices=again.notices)
    assert config_to_yaml(again) == config_to_yaml(config)
    assert config_sha256(again) == config_sha256(config)


@pytest.mark.parametrize("key", [key for key in flat_keys().values() if not key.required], ids=lambda key: key.name)
def test_every_default_survives_yaml(key):
    # Training data under another name, so that train_file too can have its default.
    base = "model_name_or_path: tiny\n" + ("dataset_path: train.jsonl\n" if key.name != "dataset_path" else "")
    base += "train_file: train.jsonl\n" if key.name == "dataset_path" else ""
    value = value_of(load(yaml.safe_dump({key.name: key.default}), base=base), key.name)
    assert value == key.default
    assert type(value) is type(key.default)


@pytest.mark.parametrize(
    "entries",
    [
        "train.jsonl",
        "[]\ntrain_file: train.jsonl",
        "[{path: '*.jsonl', weight: 5e-1, format: alpaca, max_rows: 1_000}, {name: a/b, config: 'no', split: 'null'}]",
        "[{path: train.jsonl, columns: &c {'1': 'no', a.b: c}}, {name: '1', columns: *c}, &e {name: x}, *e]",
    ],
)
def test_config_to_yaml_reads_datasets_back_to_the_same(entries):
    config = load(f"datasets: {entries}\n", base=MODEL)
    text = config_to_yaml(config)
    assert reloaded(config) == config
    assert config_to_yaml(reloaded(config)) == text
    assert not {"&", "*"} & set(text.replace("*.jsonl", ""))  # every entry is written out


@pytest.mark.parametrize("yaml_key", NESTED_SECTIONS)
def test_every_nested_default_survives_yaml(yaml_key):
    name, section = NESTED_SECTIONS[yaml_key]
    defaults = {key.name: key.default for key in keys_of(section).values()}
    if yaml_key == "quantization_config":
        defaults["load_in_4bit"] = True  # one of the two must be on
    built = getattr(load(yaml.safe_dump({"lora_config": {}, yaml_key: defaults})), name)
    for key, value in defaults.items():
        assert getattr(built, key) == value
        assert type(getattr(built, key)) is type(value)


def test_config_to_yaml_writes_every_key():
    written = yaml.safe_load(config_to_yaml(load("lora_config: {}\nadam_beta1: 0.8\n")))
    assert set(written) == {*flat_keys(), *NESTED_SECTIONS, "adam_beta1"}
    assert set(written["lora_config"]) == set(keys_of(LoRAConfig))
    assert written["quantization_config"] is None


def test_config_sha256_changes_with_a_setting_and_not_with_its_spelling():
    assert config_sha256(load("learning_rate: 1e-4\n")) == config_sha256(load("", "--learning-rate=0.0001"))
    assert config_sha256(load("learning_rate: 1e-4\n")) != config_sha256(load("learning_rate: 2e-4\n"))


def test_config_to_yaml_contains_no_secret():
    config = load_config(None, ["--model_name_or_path", "gpt2", "--train_file", __file__, "--hub_token", "hf_secret"])
    assert config.training.extra_training_arguments["hub_token"] == "hf_secret"
    assert "hf_secret" not in config_to_yaml(config)
