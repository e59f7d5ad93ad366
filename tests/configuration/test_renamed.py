"""Old and foreign names of keys."""

from __future__ import annotations

import dataclasses

import pytest

from sft.configuration.installed_transformers import training_arguments_fields
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.renamed import HINTS, MANAGED, RENAMED, WITHOUT_EFFECT
from sft.configuration.schema import (
    NESTED_SECTIONS,
    DatasetSource,
)
from tests.support import messages
from tests.support.configurations import load, problems_of, value_of


def test_load_config_reports_an_old_name_only_if_it_was_used():
    assert problems_of("max_length: 5\n", "--max_seq_length", "x") == [
        "command line: max_seq_length: expected an integer from 2 to 1000000000, found 'x'."
    ]


@pytest.mark.parametrize(
    ("line", "key", "expected", "notice"),
    [
        ("evaluation_strategy: no", "eval_strategy", "no", "is called eval_strategy here; using eval_strategy: no."),
        ("torch_dtype: torch.bfloat16", "dtype", "bfloat16", "is called dtype here; using dtype: bfloat16."),
        (
            "group_by_length: yes",
            "train_sampling_strategy",
            "group_by_length",
            "is called train_sampling_strategy here; using train_sampling_strategy: group_by_length.",
        ),
        (
            "group_by_length: no",
            "train_sampling_strategy",
            "random",
            "is called train_sampling_strategy here; using train_sampling_strategy: random.",
        ),
        ("no_cuda: true", "use_cpu", True, "is called use_cpu here; using use_cpu: true."),
        (
            "per_gpu_train_batch_size: 4",
            "per_device_train_batch_size",
            4,
            "is called per_device_train_batch_size here; using per_device_train_batch_size: 4.",
        ),
        (
            "per_gpu_eval_batch_size: 4",
            "per_device_eval_batch_size",
            4,
            "is called per_device_eval_batch_size here; using per_device_eval_batch_size: 4.",
        ),
        (
            "activation_checkpointing: yes",
            "gradient_checkpointing",
            True,
            "is called gradient_checkpointing here; using gradient_checkpointing: yes.",
        ),
        ("push_to_hub_model_id: a/b", "hub_model_id", "a/b", "is called hub_model_id here; using hub_model_id: a/b."),
        ("max_length: 64", "max_seq_length", 64, "is called max_seq_length here; using max_seq_length: 64."),
    ],
)
def test_load_config_translates_old_names_with_a_notice(line, key, expected, notice):
    config = load(line + "\n")
    assert value_of(config, key) == expected
    assert config.notices == (f"my.yaml:3: {line.partition(':')[0]} {notice}",)


@pytest.mark.parametrize("key", ["overwrite_output_dir", "save_safetensors", "do_train", "use_mps_device"])
def test_load_config_ignores_obsolete_names_with_a_notice(key):
    config = load(f"{key}: true\n")
    assert dataclasses.replace(config, notices=()) == load()
    assert len(config.notices) == 1
    assert config.notices[0].startswith(f"my.yaml:3: {messages.NO_LONGER_NEEDED.format(key=key)}")


def test_load_config_prefers_the_command_line_to_an_old_name():
    config = load("per_gpu_train_batch_size: 2\n", "--per_device_train_batch_size", "3")
    assert config.training.per_device_train_batch_size == 3


@pytest.mark.parametrize(
    "key",
    [
        "adafactor",
        "evaluation_strategy",
        "fp16_backend",
        "fp16_opt_level",
        "fsdp_min_num_params",
        "group_by_length",
        "fsdp_transformer_layer_cls_to_wrap",
        "half_precision_backend",
        "include_inputs_for_metrics",
        "include_tokens_per_second",
        "jit_mode_eval",
        "logging_dir",
        "mp_parameters",
        "no_cuda",
        "overwrite_output_dir",
        "past_index",
        "per_gpu_eval_batch_size",
        "per_gpu_train_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "push_to_hub_token",
        "ray_scope",
        "save_safetensors",
        "torchdynamo",
        "tpu_metrics_debug",
        "tpu_num_cores",
        "use_legacy_prediction_loop",
        "use_mps_device",
        "warmup_ratio",
        "torch_dtype",
    ],
)
def test_every_name_that_transformers_removed_is_known(key):
    assert key in {*RENAMED, *WITHOUT_EFFECT, *MANAGED, *flat_keys()}


def test_tables_of_names_refer_to_existing_keys():
    nested = {f"{name}.{key}" for name, (_, section) in NESTED_SECTIONS.items() for key in keys_of(section)}
    nested |= {f"datasets[].{key}" for key in keys_of(DatasetSource)}
    targets = {*flat_keys(), *NESTED_SECTIONS, *nested, *training_arguments_fields()}
    assert {renamed.name for renamed in RENAMED.values()} <= targets
    assert set(HINTS.values()) <= targets
    assert not set(flat_keys()) & {*RENAMED, *WITHOUT_EFFECT, *MANAGED, *HINTS}
