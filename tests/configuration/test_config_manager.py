"""A configuration as a user gives it: what arrives, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from config_manager import load_config
from sft.common.errors import ConfigError, located
from sft.configuration.coercion import record_type
from sft.configuration.help import format_help
from sft.configuration.installed_transformers import training_arguments_fields
from sft.configuration.keys import flat_keys, keys_of
from sft.configuration.renamed import HINTS, MANAGED, RENAMED, WITHOUT_EFFECT
from sft.configuration.schema import (
    FLAT_SECTIONS,
    NESTED_SECTIONS,
    DatasetSource,
    LoRAConfig,
    QuantizationConfig,
    SFTConfig,
)
from sft.configuration.values import config_sha256, config_to_yaml
from tests.support.parts import REPOSITORY

BASE = "model_name_or_path: tiny\ntrain_file: train.jsonl\n"
MODEL = "model_name_or_path: tiny\n"
VALIDATED = BASE + "validation_split: 0.1\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder with a training file, so that paths in messages are short and known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}\n")
    return tmp_path


def load(text: str = "", *arguments: str, base: str = BASE) -> SFTConfig:
    Path("my.yaml").write_text(base + text, encoding="utf-8")
    return load_config("my.yaml", arguments)


def problems_of(text: str = "", *arguments: str, base: str = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *arguments, base=base)
    return list(caught.value.problems)


def value_of(config: SFTConfig, key: str):
    """A setting by its flat name, wherever it lives."""
    for section in FLAT_SECTIONS:
        if key in keys_of(type(getattr(config, section))):
            return getattr(getattr(config, section), key)
    return config.training.extra_training_arguments[key]


def reloaded(config: SFTConfig) -> SFTConfig:
    Path("resolved.yaml").write_text(config_to_yaml(config), encoding="utf-8")
    return load_config("resolved.yaml")


# --- values from the file -----------------------------------------------------------------------------------------


def test_load_config_gives_every_default_to_a_file_of_two_lines():
    config = load()
    given = {"model_name_or_path", "train_file"}
    for name, key in flat_keys().items():
        assert name in given or value_of(config, name) == key.default, name
    assert (config.lora, config.quantization, config.notices) == (None, None, ())
    assert config.training.extra_training_arguments == {}


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("learning_rate: 5e-5", "learning_rate", 5e-5),
        ('learning_rate: "3"', "learning_rate", 3.0),
        ("max_seq_length: 1_000", "max_seq_length", 1000),
        ("gradient_checkpointing: yes", "gradient_checkpointing", True),
        ("bf16: no", "bf16", False),
        ("bf16: auto", "bf16", "auto"),
        ("run_name: 2024", "run_name", "2024"),
        ("run_name: no", "run_name", "no"),
        ("run_name: naïve 😀", "run_name", "naïve 😀"),
        ("run_name: &name a\nwandb_project: *name", "wandb_project", "a"),
        ("save_total_limit: null", "save_total_limit", None),
        ("resume_from_checkpoint: auto", "resume_from_checkpoint", "auto"),
        ("report_to: [tensorboard, wandb]", "report_to", ["tensorboard", "wandb"]),
        ("report_to: tensorboard, wandb", "report_to", ["tensorboard", "wandb"]),
        ("report_to: none", "report_to", []),
        ("report_to: None", "report_to", []),
        ("report_to: ~", "report_to", []),
        ("report_to:", "report_to", []),
        ("dataset_columns: {query: question}", "dataset_columns", {"query": "question"}),
        ("on_too_long: DROP", "on_too_long", "drop"),
        ("train_on: last", "train_on", "last"),
        ("add_end_token: yes", "add_end_token", True),
        ("preprocessing_num_workers: auto", "preprocessing_num_workers", "auto"),
        ("preprocessing_num_workers: 4", "preprocessing_num_workers", 4),
        ("data_cache_dir: a/b", "data_cache_dir", "a/b"),
        ("max_bad_row_share: 1", "max_bad_row_share", 1.0),
        ("max_leakage_share: 0", "max_leakage_share", 0.0),
        ("sample_prompts: ['a: b', c]", "sample_prompts", ["a: b", "c"]),
        ("sample_prompts: []", "sample_prompts", []),
        ("save_strategy: no", "save_strategy", "no"),
        ("adam_beta1: 0.8", "adam_beta1", 0.8),
        ("ddp_timeout: 1e3", "ddp_timeout", 1000),
        ("tf32: yes", "tf32", True),
        ("optim_target_modules: all-linear", "optim_target_modules", "all-linear"),
        ("torch_compile_backend: eager\ntorch_compile: yes", "torch_compile_backend", "eager"),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", "lr_scheduler_kwargs", {"min_lr": 1e-6}),
        ("liger_kernel_config: {rope: no}", "liger_kernel_config", {"rope": False}),
    ],
)
def test_load_config_reads_values_as_meant(line, key, expected):
    value = value_of(load(line + "\n"), key)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf" + BASE.encode() + b"seed: 7\n", id="byte order mark"),
        pytest.param((BASE + "seed: 7\n").replace("\n", "\r\n").encode(), id="windows newlines"),
        pytest.param(b"---\n" + BASE.encode() + b"seed: 7\n...\n", id="document marks"),
        pytest.param(b'{model_name_or_path: tiny, "train_file": train.jsonl, seed: 7}', id="one line"),
    ],
)
def test_load_config_reads_files_of_any_editor(content):
    Path("my.yaml").write_bytes(content)
    assert load_config("my.yaml").training.seed == 7


@pytest.mark.parametrize("text", ["lora_config: {}\n", "lora_config:\n  r: 16\n", "lora_config.r: 16\n"])
def test_load_config_switches_lora_on(text):
    assert load(text).lora == LoRAConfig()


def test_load_config_reads_nested_sections():
    config = load("lora_config:\n  r: 8\n  target_modules: q_proj, v_proj\nquantization_config: {load_in_4bit: yes}\n")
    assert config.lora == LoRAConfig(r=8, target_modules=["q_proj", "v_proj"])
    assert config.quantization == QuantizationConfig(load_in_4bit=True)


def test_load_config_says_that_an_empty_section_is_off():
    config = load("lora_config:\n")
    assert config.lora is None
    assert config.notices == ("my.yaml:3: lora_config is empty, so it is off; {} takes its defaults.",)
    assert load("lora_config: null\n").notices == ()


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "key", "expected"),
    [
        (["--learning_rate", "1e-4"], "learning_rate", 1e-4),
        (["--learning-rate=1e-4"], "learning_rate", 1e-4),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--seed", "1", "--seed", "2"], "seed", 2),
        (["--bf16", "--seed", "3"], "bf16", True),
        (["--bf16", "no"], "bf16", False),
        (["--output_dir=a=b"], "output_dir", "a=b"),
        (["--output_dir", "a: [b] #c"], "output_dir", "a: [b] #c"),
        (["--run_name", ""], "run_name", ""),
        (["--run_name", "null"], "run_name", None),
        (["--chat_template", "{{ messages }}"], "chat_template", "{{ messages }}"),
        (["--sample_prompts", "What is 1, 2: and 3?"], "sample_prompts", ["What is 1, 2: and 3?"]),
        (["--sample_prompts", "a, b", "c: d"], "sample_prompts", ["a, b", "c: d"]),
        (["--sample_prompts", "[a, b]"], "sample_prompts", ["a", "b"]),
        (["--sample_prompts", "[unfinished"], "sample_prompts", ["[unfinished"]),
        (["--report_to", "tensorboard", "wandb"], "report_to", ["tensorboard", "wandb"]),
        (["--report_to", "tensorboard,wandb"], "report_to", ["tensorboard", "wandb"]),
        (["--report_to", "null"], "report_to", []),
        (["--dataset_columns", "{query: question}"], "dataset_columns", {"query": "question"}),
        (["--dataset_columns.my-query", "a: b"], "dataset_columns", {"my-query": "a: b"}),
        (["--lr_scheduler_kwargs", '{"num_cycles": 2}'], "lr_scheduler_kwargs", {"num_cycles": 2}),
        (["--lr_scheduler_kwargs.num_cycles", "2"], "lr_scheduler_kwargs", {"num_cycles": 2}),
        (["--use_cpu"], "use_cpu", True),
        (["--no_cuda"], "use_cpu", True),
        (["--save_strategy", "no"], "save_strategy", "no"),
        (["--optim_args", "a=1,b: 2"], "optim_args", "a=1,b: 2"),
    ],
)
def test_load_config_reads_the_command_line_as_meant(arguments, key, expected):
    assert value_of(load("", *arguments), key) == expected


def test_load_config_lets_the_command_line_beat_the_file():
    config = load("learning_rate: 1e-5\nlora_config: {r: 4, bias: all}\n", "--learning_rate=1", "--lora_config.r", "8")
    assert config.training.learning_rate == 1.0
    assert config.lora == LoRAConfig(r=8, bias="all")


def test_load_config_adds_to_a_mapping_of_the_file():
    columns = load("dataset_columns: {a: x, b: y}\n", "--dataset_columns.b", "z").data.dataset_columns
    assert columns == {"a": "x", "b": "z"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lora_config", "null"], None),
        (["--lora_config", "null", "--lora_config.bias", "all"], LoRAConfig(bias="all")),
        (["--lora_config", "{bias: all}"], LoRAConfig(r=4, bias="all")),
    ],
)
def test_load_config_changes_a_section_of_the_file(arguments, expected):
    assert load("lora_config: {r: 4}\n", *arguments).lora == expected


def test_load_config_takes_everything_from_the_command_line():
    config = load_config(None, ["--model_name_or_path", "tiny", "--train_file", "train.jsonl"])
    assert config.model.model_name_or_path == "tiny"
    with pytest.raises(ConfigError, match=r"^command line: model_name_or_path: is required"):
        load_config(None, ["--train_file", "train.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["stray"], "'stray' is not an option; settings are given as --key value."),
        (["-x"], "'-x' is not an option; settings are given as --key value."),
        (["--"], "'--' is not an option; settings are given as --key value."),
        (["--run_name"], "run_name: needs a value after it, text or null."),
        (["--output_dir", "--bf16"], "output_dir: needs a value after it, a path."),
        (["--lora_config.r"], "lora_config.r: needs a value after it, a whole number from 1 up."),
        (["--run_name", "my", "run"], "run_name: takes one value, found 2: my run. Text with spaces needs quotes."),
        (["--max_steps", "-2"], "max_steps: -2 is out of range; give a whole number from 1 up, or -1."),
        (["--learning_rate", "x"], "learning_rate: expected a number from 0 up, found 'x'."),
        (["--dataset_columns", "a"], "dataset_columns: expected a mapping like {a: b}, found 'a'."),
        (["--dataset_columns", "{a: b, a: c}"], "dataset_columns.a: stands twice. Keep one."),
        (["--learning_rat", "1"], "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
        (["--lora_config.rank", "1"], "unknown key 'lora_config.rank'. Allowed there: r, lora_alpha, target_modules, "
         "lora_dropout, bias, task_type, use_rslora, use_dora, modules_to_save."),
    ],
)  # fmt: skip
def test_load_config_refuses_a_wrong_command_line(arguments, problem):
    assert problems_of("", *arguments) == [f"command line: {problem}"]


# --- what is wrong with a file ------------------------------------------------------------------------------------


def test_load_config_reports_all_problems_at_once_in_the_order_of_the_lines():
    text = (
        "learning_rat: 1\n"
        "seed: x\n"
        "fp16: true\n"
        "bf16: true\n"
        "lora_config:\n"
        "  r: 0\n"
        "load_best_model_at_end: yes\n"
        "tf32: maybe\n"
    )
    assert problems_of(text, "--weight_decay", "-1") == [
        "my.yaml:3: unknown key 'learning_rat'. Did you mean 'learning_rate'?",
        "my.yaml:4: seed: expected a whole number from 0 to 4294967295, found 'x'.",
        "my.yaml:6: bf16: fp16 and bf16 exclude each other; choose one.",
        "my.yaml:8: lora_config.r: 0 is out of range; give a whole number from 1 up.",
        "my.yaml:9: load_best_model_at_end: needs validation data; give validation_file or validation_split.",
        "my.yaml:10: tf32: expected true or false, found 'maybe'.",
        "command line: weight_decay: -1 is out of range; give a number from 0 up.",
    ]


def test_load_config_names_what_an_empty_file_lacks():
    assert problems_of(base="") == [
        "my.yaml: model_name_or_path: is required. The model to start from: a folder, or a name on the Hugging Face "
        "Hub.",
        "my.yaml: train_file: no training data: give train_file, dataset_path, dataset_name or datasets.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2\n", ":4: seed: stands twice, first in line 3. Keep one."),
        ("lora_config: {r: 4}\nlora_config.r: 8\n", ":4: lora_config.r: stands twice, first in line 3. Keep one."),
        ("dataset_columns:\n  a: x\n  a: y\n", ":5: dataset_columns.a: stands twice, first in line 4. Keep one."),
        ("<<: {seed: 3}\n", ":3: merge keys (<<) are not supported; write the keys out."),
        ("lora_config:\n  <<: {r: 3}\n", ":4: merge keys (<<) are not supported; write the keys out."),
        ("dataset_columns: {[a]: y}\n", ":3: a key must be a plain word."),
        ("[a]: y\n", ":3: a key must be a plain word."),
        ("lr_scheduler_kwargs: &a\n  x: *a\n", ":3: lr_scheduler_kwargs.x: refers to itself."),
        ("lr_scheduler_kwargs: {a: !foo x}\n",
         ":3: lr_scheduler_kwargs.a: the tag '!foo' is not supported; leave it out."),
        ("learning_rate:\n  a: b\n", ":3: learning_rate: expected a number from 0 up, found a mapping."),
        ("learning_rate:\n", ":3: learning_rate: expected a number from 0 up, found nothing."),
        ("learning-rate: 1\n", ":3: unknown key 'learning-rate'. Did you mean 'learning_rate'?"),
        ("lr: 1\n", ":3: unknown key 'lr'. Here it is 'learning_rate'."),
        ("lora_r: 1\n", ":3: unknown key 'lora_r'. Here it is 'lora_config.r'."),
        ("lora_config: {lora_alfa: 1}\n", ":3: unknown key 'lora_config.lora_alfa'. Did you mean 'lora_alpha'?"),
        ("banana: 1\n", ":3: unknown key 'banana'. `python sft_main.py --help` lists every key."),
        ("extra_training_arguments: {}\n",
         ":3: unknown key 'extra_training_arguments'. `python sft_main.py --help` lists every key."),
        ("lora_config: true\n", ":3: lora_config: expected indented `key: value` lines below it, or {} for its "
         "defaults, or null for none; found 'true'."),
        ("lora_config: {target_modules: []}\n",
         ":3: lora_config.target_modules: names no layer; list some, or write all-linear."),
        ("save_strategy: off\n", ":3: save_strategy: 'off' is not allowed; choose no | steps | epoch | best."),
        ("label_names: [a]\n", ":3: label_names: cannot be set here: labels are made from the chat template."),
        ("max_length: x\n", ":3: max_seq_length (written max_length): expected a whole number from 2 up, found 'x'."),
        ("group_by_length: maybe\n", ":3: train_sampling_strategy (written group_by_length): 'maybe' is unknown; "
         "choose random | sequential | group_by_length."),
        ("on_too_long: cut\n", ":3: on_too_long: 'cut' is not allowed; choose truncate | drop | error."),
        ("train_on: first\n", ":3: train_on: 'first' is not allowed; choose all | last."),
        ("preprocessing_num_workers: 0\n",
         ":3: preprocessing_num_workers: '0' is not allowed; give a whole number from 1 up or auto."),
        ("max_bad_row_share: 1.1\n", ":3: max_bad_row_share: 1.1 is out of range; give a number from 0 to 1."),
        ("max_leakage_share: -1\n", ":3: max_leakage_share: -1 is out of range; give a number from 0 to 1."),
        ("shuffle_block_rows: 0\n", ":3: shuffle_block_rows: 0 is out of range; give a whole number from 1 up."),
        ("data_cache_dir: ''\n", ":3: data_cache_dir: is empty; give a path, or leave the key out."),
        ("cutoff_len: 8\n", ":3: unknown key 'cutoff_len'. Here it is 'max_seq_length'."),
        ("dataset_num_proc: 8\n", ":3: unknown key 'dataset_num_proc'. Here it is 'preprocessing_num_workers'."),
        ("mask_history: true\n", ":3: unknown key 'mask_history'. Here it is 'train_on'."),
        ("excess_length_strategy: drop\n", ":3: unknown key 'excess_length_strategy'. Here it is 'on_too_long'."),
        ("assistant_only_loss: false\n",
         ":3: assistant_only_loss: cannot be set here: of a conversation, only what the assistant says is trained."),
        ("train_on_inputs: true\n",
         ":3: train_on_inputs: cannot be set here: prompts are never trained; the format text trains every token."),
        ("sample_prompts:\n  - What is: this\n",
         ":3: sample_prompts: expected text, found a mapping; text that holds ': ' needs quotes."),
        ("per_gpu_train_batch_size: 2\nper_device_train_batch_size: 3\n", ":4: per_device_train_batch_size: "
         "per_device_train_batch_size is given in my.yaml:3 too. Keep one."),
    ],
)  # fmt: skip
def test_load_config_refuses_a_line_with_its_place_and_the_mend(text, problem):
    assert problems_of(text) == ["my.yaml" + problem]


def test_load_config_names_an_older_key_only_where_it_was_written():
    assert problems_of("max_length: 5\n", "--max_seq_length", "x") == [
        "command line: max_seq_length: expected a whole number from 2 up, found 'x'."
    ]


QUOTES = "a text that holds ': ' or begins with * & ! % @ ` needs quotes"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- a\n- b\n", ":1: expected lines like `learning_rate: 1e-4`, found a list."),
        (b"just text\n", ":1: expected lines like `learning_rate: 1e-4`, found a single text."),
        (b"lora_config:\n\tr: 8\n", ":2: not valid YAML: while scanning for the next token, found character '\\t' that "
         "cannot start any token; write spaces, not tabs (column 1)."),
        (b"a: 1\ntrain_file: *.jsonl\n", ":2: not valid YAML: while scanning an alias, expected alphabetic or numeric "
         f"character, but found '.'; {QUOTES} (column 14)."),
        (b"run_name: a: b\n", f":1: not valid YAML: mapping values are not allowed here; {QUOTES} (column 12)."),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: expected a single document in the stream, but found another "
         "document (column 1)."),
        (b"a: \xff\n", ": is not UTF-8 text (byte 3); save it as UTF-8."),
        ("a: 1\n".encode("utf-16"), ": is not UTF-8 text (byte 0); save it as UTF-8."),
        (b"a: \x00\n", ": not valid YAML: unacceptable character #x0000: special characters are not allowed in "
         "\"<unicode string>\", position 3"),
        (b"[\n" * 3000, ": not valid YAML: nested too deeply."),
    ],
    ids=["list", "text", "tab", "star", "colon", "two documents", "latin-1", "utf-16", "binary", "deep"],
)  # fmt: skip
def test_load_config_refuses_what_is_no_file_of_settings(content, problem):
    Path("my.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config("my.yaml")
    assert caught.value.problems == ("my.yaml" + problem,)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("none.yaml", "none.yaml: no such file. Name your configuration with --config_file."),
        (".", ".: is a folder; --config_file takes a YAML file."),
        ("train.jsonl/a", "train.jsonl/a: cannot be read: Not a directory."),
    ],
)
def test_load_config_refuses_a_path_that_is_no_file(path, problem):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == (problem,)


# --- what does not fit together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("quantization_config: {load_in_4bit: yes, load_in_8bit: yes}\nlora_config: {}\n",
         ":3: quantization_config.load_in_8bit: 4 bits and 8 bits exclude each other; choose one."),
        ("quantization_config: {}\nlora_config: {}\n",
         ":3: quantization_config: says neither load_in_4bit nor load_in_8bit; set one to true."),
        ("quantization_config: {load_in_4bit: yes}\n",
         ":3: quantization_config: quantized weights cannot be trained themselves; add a lora_config section."),
        ("quantization_config.load_in_4bit: yes\n",
         ":3: quantization_config: quantized weights cannot be trained themselves; add a lora_config section."),
        ("dtype: float16\n",
         ":3: dtype: weights in float16 cannot be trained; write auto, or add lora_config to train adapters only."),
        ("gguf_file: a.gguf\nlora_config: {}\nquantization_config: {load_in_4bit: yes}\n",
         ":3: gguf_file: its weights are de-quantized when read; leave out quantization_config."),
        ("dataset_name: a/b\n", ": train_file: dataset_name already names the training data; choose one."),
        ("dataset_config_name: main\n", ":3: dataset_config_name: belongs to dataset_name, which is not given."),
        ("validation_split: 0.1\nvalidation_file: train.jsonl\n",
         ":3: validation_split: validation_file already gives validation data; choose one."),
        ("warmup_steps: 1\nwarmup_ratio: 0.1\n",
         ":4: warmup_ratio: warmup_steps and warmup_ratio say the same thing; choose one."),
        ("optim: adamw_torh\n", ":3: optim: 'adamw_torh' is unknown. Did you mean 'adamw_torch'?"),
        ("lr_scheduler_type: cosin\n", ":3: lr_scheduler_type: 'cosin' is unknown. Did you mean 'cosine'?"),
        ("output_dir: train.jsonl\n", ":3: output_dir: 'train.jsonl' is a file; name a folder."),
        ("resume_from_checkpoint: nowhere\n",
         ":3: resume_from_checkpoint: there is no folder 'nowhere'; name a checkpoint, or write auto."),
        ("report_to: tensorbord\n", ":3: report_to: 'tensorbord' is unknown. Did you mean 'tensorboard'?"),
        ("eval_steps: 5\n", ":3: eval_steps: needs validation data; give validation_file or validation_split."),
        ("eval_strategy: epoch\n",
         ":3: eval_strategy: needs validation data; give validation_file or validation_split."),
        ("save_strategy: best\n",
         ":3: save_strategy: needs validation data; give validation_file or validation_split."),
        ("lr_scheduler_type: reduce_lr_on_plateau\n",
         ":3: lr_scheduler_type: needs validation data; give validation_file or validation_split."),
        ("save_strategy: epoch\nsave_steps: 5\n",
         ":4: save_steps: save_strategy: epoch leaves no room for it; choose one."),
        ("save_strategy: steps\n", ":3: save_strategy: steps needs save_steps; add it."),
        ("bf16_full_eval: yes\n",
         ":3: bf16_full_eval: cannot be set here: evaluation computes in the same mixed precision as training."),
        ("metric_for_best_model: eval_los\n",
         ":3: metric_for_best_model: 'eval_los' is unknown; "
         "choose loss | perplexity | token_accuracy | sequence_accuracy."),
        ("dataloader_prefetch_factor: 2\n", ":3: dataloader_prefetch_factor: needs dataloader_num_workers above 0."),
        ("torch_empty_cache_steps: 0\n",
         ":3: torch_empty_cache_steps: is 0; give a whole number from 1 up, or null."),
    ],
)  # fmt: skip
def test_load_config_refuses_contradictions(text, problem):
    expected = "my.yaml" + problem
    if "dataset_name already" in problem:
        expected = "my.yaml:2" + problem
    assert problems_of(text) == [expected]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("eval_strategy: no\n",
         ":4: load_best_model_at_end: needs evaluation, which eval_strategy: no switches off; choose one."),
        ("save_strategy: no\n", ":4: load_best_model_at_end: needs checkpoints, which save_strategy: no switches off."),
        ("eval_steps: 5\n",
         ":4: load_best_model_at_end: evaluation and saving must fall on the same steps: eval_steps is 5, save_steps "
         "is None; give both or neither."),
        ("eval_steps: 5\nsave_steps: 7\n",
         ":6: save_steps: must be a multiple of eval_steps (5) for load_best_model_at_end."),
        ("eval_steps: 5\nsave_steps: 0.5\n",
         ":6: save_steps: must be a multiple of eval_steps (5) for load_best_model_at_end."),
    ],
)  # fmt: skip
def test_load_config_refuses_a_schedule_that_cannot_keep_the_best_model(text, problem):
    assert problems_of("load_best_model_at_end: yes\n" + text, base=VALIDATED) == ["my.yaml" + problem]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "eval_steps: 5\nsave_steps: 10\n",
        "eval_steps: 0.1\nsave_steps: 0.3\n",
        "eval_steps: 5\nsave_strategy: best\n",
        "lr_scheduler_type: reduce_lr_on_plateau\n",
    ],
)
def test_load_config_accepts_a_schedule_that_can_keep_the_best_model(text):
    assert load("load_best_model_at_end: yes\n" + text, base=VALIDATED).training.load_best_model_at_end is True


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("trian.jsonl", "there is no 'trian.jsonl' (seen from {folder}). Did you mean 'train.jsonl'?"),
        ("no/such.jsonl", "there is no 'no/such.jsonl' (seen from {folder})."),
        ("'*.csv'", "no file matches '*.csv' (seen from {folder})."),
        ("''", "is empty; give a path, or leave the key out."),
        ("x" * 5000, "there is no '" + "x" * 5000 + "' (seen from {folder})."),
        ("train.jsonl/a", "there is no 'train.jsonl/a' (seen from {folder})."),
    ],
    ids=["typo", "folder", "glob", "empty", "too long", "under a file"],
)
def test_load_config_says_which_data_file_is_missing(folder, value, problem):
    problems = problems_of(f"validation_file: {value}\n")
    assert problems == ["my.yaml:3: validation_file: " + problem.format(folder=folder)]


def test_load_config_finds_data_under_dataset_path(folder):
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text("{}\n")
    base = "model_name_or_path: m\ndataset_path: corpus\n"
    assert load("train_file: '*.jsonl'\n", base=base).data.train_file == "*.jsonl"
    assert problems_of("train_file: b.jsonl\n", base=base) == [
        f"my.yaml:3: train_file: there is no 'corpus/b.jsonl' (seen from {folder}). Did you mean 'a.jsonl'?"
    ]


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "a/b/c", "nowhere/", pytest.param("./" + "x" * 5000, id="long")]
)
def test_load_config_refuses_a_model_folder_that_is_not_there(folder, name):
    assert problems_of(f"model_name_or_path: {name}\ntrain_file: train.jsonl\n", base="") == [
        f"my.yaml:1: model_name_or_path: there is no folder {name!r} (seen from {folder})."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "validation_file: [a]\nload_best_model_at_end: true\n",
        "lora_config: yes\nquantization_config: {load_in_4bit: yes}\n",
        "quantization_config: {load_in_4bit: maybe}\nlora_config: {}\n",
    ],
)
def test_load_config_says_nothing_of_what_follows_from_a_wrong_value(text):
    assert [problem.split(":")[1] for problem in problems_of(text)] == ["3"]


# --- several sources ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("train.jsonl", [DatasetSource(path="train.jsonl")]),
        ("{path: train.jsonl}", [DatasetSource(path="train.jsonl")]),
        ("[train.jsonl, '*.jsonl']", [DatasetSource(path="train.jsonl"), DatasetSource(path="*.jsonl")]),
        ("\n- train.jsonl\n- name: a/b\n  config: 2024\n  split: no\n",
         [DatasetSource(path="train.jsonl"), DatasetSource(name="a/b", config="2024", split="no")]),
        ("[{path: train.jsonl, weight: 5e-1, columns: {q: question}, max_rows: 1_000, format: squad}]",
         [DatasetSource(path="train.jsonl", weight=0.5, columns={"q": "question"}, max_rows=1000, format="squad")]),
        ("[{path: null, name: x}]", [DatasetSource(name="x")]),
        ("[&a {path: train.jsonl}, *a]", [DatasetSource(path="train.jsonl")] * 2),
    ],
)  # fmt: skip
def test_load_config_reads_datasets(entries, expected):
    config = load(f"datasets: {entries}\n", base=MODEL)
    assert config.data.datasets == expected
    assert config.notices == ()
    assert all(type(source.weight) is float for source in config.data.datasets)


def test_load_config_finds_a_source_in_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert load("datasets: ['~/train.jsonl']\n", base=MODEL).data.datasets[0].path == f"{folder}/train.jsonl"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.jsonl"], [DatasetSource(path="train.jsonl")]),
        (["b: c.jsonl"], [DatasetSource(path="b: c.jsonl")]),
        (["{path: train.jsonl, weight: 2}"], [DatasetSource(path="train.jsonl", weight=2.0)]),
        (["[train.jsonl, {name: x}]"], [DatasetSource(path="train.jsonl"), DatasetSource(name="x")]),
        (["b: c.jsonl", "{name: x, max_rows: 5}"],
         [DatasetSource(path="b: c.jsonl"), DatasetSource(name="x", max_rows=5)]),
        (["[tx]rain.jsonl"], [DatasetSource(path="[tx]rain.jsonl")]),
    ],
)  # fmt: skip
def test_load_config_reads_datasets_from_the_command_line_in_place_of_the_files(folder, arguments, expected):
    (folder / "b: c.jsonl").write_text("{}\n")
    config = load("datasets: [{path: nowhere, weigth: 0}]\n", "--datasets", *arguments, base=MODEL)
    assert config.data.datasets == expected
    assert load("", "--datasets", *arguments, base=MODEL).data.datasets == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--datasets"], "datasets: needs a value after it, a list of mappings."),
        (["--datasets", "null"], "datasets: expected a list of mappings, found nothing."),
        (["--datasets", "{path: train.jsonl, wieght: 3}"],
         "datasets[0]: unknown key 'wieght'. Did you mean 'weight'?"),
        (["--datasets", "{name: a, name: b}"], "datasets.name: stands twice. Keep one."),
        (["--datasets[0].weight", "2"],
         "unknown key 'datasets[0].weight'. Entries are given all at once: datasets: [{path: ...}, ...]."),
        (["--datasets.path", "a"],
         "unknown key 'datasets.path'. Entries are given all at once: datasets: [{path: ...}, ...]."),
    ],
)  # fmt: skip
def test_load_config_refuses_wrong_datasets_on_the_command_line(arguments, problem):
    assert problems_of("", *arguments, base=MODEL) == [f"command line: {problem}"]


def test_load_config_names_the_line_of_each_wrong_key_of_each_entry(folder):
    text = (
        "datasets:\n"
        "  - trian.jsonl\n"
        "  - path: train.jsonl\n"
        "    weight: x\n"
        "    format: alpacca\n"
        "    columns: [a]\n"
        "  -\n"
        "    pth: train.jsonl\n"
        "  - [train.jsonl]\n"
        "  -\n"
        "  - {name: a/b, type: alpaca,\n"
        "     banana: 1, max_rows: 0}\n"
        "  - path: train.jsonl\n"
        "    path: other.jsonl\n"
        "    <<: {weight: 2}\n"
    )
    assert problems_of(text.replace("    <<: {weight: 2}\n", ""), base=MODEL) == [
        f"my.yaml:3: datasets[0].path: there is no 'trian.jsonl' (seen from {folder}). Did you mean 'train.jsonl'?",
        "my.yaml:5: datasets[1].weight: expected a number above 0 to 1000, found 'x'.",
        "my.yaml:6: datasets[1].format: 'alpacca' is unknown. Did you mean 'alpaca'?",
        "my.yaml:7: datasets[1].columns: expected a mapping like {a: b}, found a list of 1.",
        "my.yaml:9: datasets[2]: unknown key 'pth'. Did you mean 'path'?",
        "my.yaml:10: datasets[3]: expected a mapping like {path: ...}, found a list of 1.",
        "my.yaml:11: datasets[4]: expected a mapping like {path: ...}, found nothing.",
        "my.yaml:12: datasets[5]: unknown key 'type'. Here it is 'format'.",
        "my.yaml:13: datasets[5].max_rows: 0 is out of range; give a whole number from 1 up.",
        "my.yaml:13: datasets[5]: unknown key 'banana'. Allowed there: path, name, config, split, format, weight, "
        "columns, max_rows.",
        "my.yaml:15: datasets[6].path: stands twice, first in line 14. Keep one.",
    ]
    assert problems_of(text, base=MODEL) == [
        "my.yaml:15: datasets[6].path: stands twice, first in line 14. Keep one.",
        "my.yaml:16: merge keys (<<) are not supported; write the keys out.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("datasets:\n", ":2: datasets: expected a list of mappings, found nothing."),
        ("datasets: []\n",
         ": train_file: no training data: give train_file, dataset_path, dataset_name or datasets."),
        ("datasets:\n  - weight: 2\n", ":3: datasets[0]: does not say where its rows come from; give path or name."),
        ("datasets:\n  - {}\n", ":3: datasets[0]: does not say where its rows come from; give path or name."),
        ("datasets:\n  - name: a/b\n    path: train.jsonl\n",
         ":3: datasets[0]: path and name both say where its rows come from; choose one."),
        ("datasets:\n  - path: train.jsonl\n    config: main\n",
         ":4: datasets[0].config: belongs to name, which is not given."),
        ("datasets: ['']\n", ":2: datasets[0].path: is empty; give a path, or leave the key out."),
        ("datasets: ['*.csv']\n", ":2: datasets[0].path: no file matches '*.csv' (seen from {folder})."),
        ("datasets:\n  - train.jsonl\n  - openai/gsm8k\n",
         ":4: datasets[1].path: there is no 'openai/gsm8k' (seen from {folder}). A dataset on the Hugging Face Hub is "
         "given by name."),
        ("datasets:\n  - name: x\n    format: zzz\n", ":4: datasets[0].format: 'zzz' is unknown. Allowed: messages, "
         "conversations, squad, alpaca, prompt_completion, question_answer, input_output, text."),
        ("datasets: train.jsonl\ntrain_file: train.jsonl\n",
         ":3: train_file: datasets already names the training data; choose one."),
        ("datasets: train.jsonl\ndataset_path: .\n",
         ":3: dataset_path: datasets already names the training data; choose one."),
        ("datasets: train.jsonl\ndataset_name: a/b\n",
         ":3: dataset_name: datasets already names the training data; choose one."),
        ("datasets: train.jsonl\ndataset_columns: {a: text}\n",
         ":3: dataset_columns: with datasets, each entry has its own; write it there, as columns."),
        ("datasets: train.jsonl\neval_steps: 5\n",
         ":3: eval_steps: needs validation data; give validation_file or validation_split."),
    ],
)  # fmt: skip
def test_load_config_refuses_datasets_that_do_not_fit(folder, text, problem):
    assert problems_of(text, base=MODEL) == ["my.yaml" + problem.replace("{folder}", str(folder))]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{path: [a]}", "datasets[0].path: expected a path, found a list of 1"),
        ("{nam: a/b, config: main}", "datasets[0]: unknown key 'nam'. Did you mean 'name'?"),
        ("{name: [a], config: main}", "datasets[0].name: expected text, found a list of 1"),
        ("{path: &a [*a]}", "datasets[0].path[0]: refers to itself."),
        ("!foo train.jsonl", "datasets[0]: the tag '!foo' is not supported; leave it out."),
    ],
)
def test_load_config_says_nothing_of_what_follows_from_a_wrong_entry(entry, problem):
    (only,) = problems_of(f"datasets: [{entry}]\n", base=MODEL)
    assert only.startswith(f"my.yaml:2: {problem}")


def test_every_key_of_every_entry_has_its_place_for_what_is_found_wrong_later():
    origins = load("datasets:\n  - train.jsonl\n  - name: x\n    weight: 2\n", base=MODEL).origins
    assert {key: place for key, place in origins.items() if key.startswith("datasets")} == {
        "datasets": "my.yaml:2",
        "datasets[0]": "my.yaml:3",
        "datasets[0].path": "my.yaml:3",
        "datasets[1]": "my.yaml:4",
        "datasets[1].name": "my.yaml:4",
        "datasets[1].weight": "my.yaml:5",
    }


def test_the_sample_configuration_shows_entries_that_load(folder):
    lines = (REPOSITORY / "sample_config.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# datasets:"))
    end = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith("#   "))
    (folder / "data" / "support").mkdir(parents=True)
    (folder / "data" / "support" / "a.jsonl").touch()
    (folder / "data" / "faq.csv").touch()
    text = "".join(line.removeprefix("# ") + "\n" for line in lines[start:end])
    sources = load(text, base=MODEL).data.datasets
    assert [source.path for source in sources] == ["data/support/*.jsonl", "data/faq.csv"]
    assert all(f" {key}:" in text for key in keys_of(DatasetSource) if key not in ("name", "config"))


# --- streaming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":3: streaming: needs max_steps: how many rows there are is not known beforehand."),
        ("max_steps: 5\nvalidation_split: 0.1\n",
         ":5: validation_split: streaming keeps no rows that could be set aside; give validation_file instead."),
        ("max_steps: 5\ntrain_sampling_strategy: group_by_length\n", ":5: train_sampling_strategy: group_by_length "
         "needs all lengths beforehand, streaming has none; choose one."),
        ("max_steps: 5\ngroup_by_length: yes\n", ":5: train_sampling_strategy (written group_by_length): "
         "group_by_length needs all lengths beforehand, streaming has none; choose one."),
    ],
)  # fmt: skip
def test_load_config_refuses_what_streaming_cannot_do(text, problem):
    assert problems_of("streaming: yes\n" + text) == ["my.yaml" + problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("packing: yes\ntokens_per_batch: 2048\n",
         ":4: tokens_per_batch: packs are sized by max_seq_length with packing; choose one."),
        ("tokens_per_batch: 512\n",
         ":3: tokens_per_batch: is 512, less than a row may have (max_seq_length 1024)."),
        ("packing: yes\npadding_free: no\n",
         ":3: packing: lays rows end to end, which padding_free: false forbids; choose one."),
        ("packing: yes\nstreaming: yes\nmax_steps: 5\n",
         ":3: packing: needs the lengths of all rows beforehand, streaming has none; choose one."),
        ("tokens_per_batch: 2048\ntrain_sampling_strategy: group_by_length\n",
         ":3: tokens_per_batch: makes batches of like size itself; leave train_sampling_strategy out."),
        ("torch_compile_mode: max-autotune\n",
         ":3: torch_compile_mode: belongs to torch_compile, which is false; add torch_compile: true."),
        ("gradient_checkpointing: yes\ncheckpoint_every_n_layers: 2\n"
         "gradient_checkpointing_kwargs: {every_n_layers: 3}\n",
         ":4: checkpoint_every_n_layers: gradient_checkpointing_kwargs says it too; choose one."),
        ("checkpoint_every_n_layers: 0\n",
         ":3: checkpoint_every_n_layers: 0 is out of range; give a whole number from 1 up."),
    ],
)  # fmt: skip
def test_load_config_refuses_what_does_not_go_together_for_speed(text, problem):
    assert problems_of(text) == ["my.yaml" + problem]


def test_load_config_refuses_weights_of_streamed_sources_at_their_lines():
    entries = "- name: x\n  weight: 2\n- {name: y, weight: 1}\n- {name: z, weight: .5}\n"
    assert problems_of("streaming: yes\nmax_steps: 5\ndatasets:\n" + entries, base=MODEL) == [
        "my.yaml:6: datasets[0].weight: streaming reads each source once, in order; leave weight out.",
        "my.yaml:8: datasets[2].weight: streaming reads each source once, in order; leave weight out.",
    ]


def test_load_config_accepts_streaming_with_validation_data_and_epochs():
    text = "streaming: yes\nmax_steps: 5\nnum_train_epochs: 2\nvalidation_file: train.jsonl\neval_steps: 5\n"
    assert load(text).data.streaming is True


# --- other names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "key", "expected", "notice"),
    [
        ("evaluation_strategy: no", "eval_strategy", "no", "is called eval_strategy here; read as eval_strategy: no."),
        ("torch_dtype: torch.bfloat16", "dtype", "bfloat16", "is called dtype here; read as dtype: bfloat16."),
        ("group_by_length: yes", "train_sampling_strategy", "group_by_length",
         "is called train_sampling_strategy here; read as train_sampling_strategy: group_by_length."),
        ("group_by_length: no", "train_sampling_strategy", "random",
         "is called train_sampling_strategy here; read as train_sampling_strategy: random."),
        ("no_cuda: true", "use_cpu", True, "is called use_cpu here; read as use_cpu: true."),
        ("per_gpu_train_batch_size: 4", "per_device_train_batch_size", 4,
         "is called per_device_train_batch_size here; read as per_device_train_batch_size: 4."),
        ("per_gpu_eval_batch_size: 4", "per_device_eval_batch_size", 4,
         "is called per_device_eval_batch_size here; read as per_device_eval_batch_size: 4."),
        ("activation_checkpointing: yes", "gradient_checkpointing", True,
         "is called gradient_checkpointing here; read as gradient_checkpointing: yes."),
        ("push_to_hub_model_id: a/b", "hub_model_id", "a/b", "is called hub_model_id here; read as hub_model_id: a/b."),
        ("max_length: 64", "max_seq_length", 64, "is called max_seq_length here; read as max_seq_length: 64."),
    ],
)  # fmt: skip
def test_load_config_translates_older_names_and_says_so(line, key, expected, notice):
    config = load(line + "\n")
    assert value_of(config, key) == expected
    assert config.notices == (f"my.yaml:3: {line.partition(':')[0]} {notice}",)


@pytest.mark.parametrize("key", ["overwrite_output_dir", "save_safetensors", "do_train", "use_mps_device"])
def test_load_config_drops_names_whose_wish_is_met_and_says_so(key):
    config = load(f"{key}: true\n")
    assert dataclasses.replace(config, notices=()) == load()
    assert len(config.notices) == 1
    assert config.notices[0].startswith(f"my.yaml:3: {key} is no longer needed: ")


def test_load_config_lets_the_command_line_beat_an_older_name():
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
def test_every_name_that_transformers_dropped_is_known(key):
    assert key in {*RENAMED, *WITHOUT_EFFECT, *MANAGED, *flat_keys()}


def test_tables_of_names_lead_to_keys_that_exist():
    nested = {f"{name}.{key}" for name, (_, section) in NESTED_SECTIONS.items() for key in keys_of(section)}
    nested |= {f"datasets[].{key}" for key in keys_of(DatasetSource)}
    targets = {*flat_keys(), *NESTED_SECTIONS, *nested, *training_arguments_fields()}
    assert {renamed.name for renamed in RENAMED.values()} <= targets
    assert set(HINTS.values()) <= targets
    assert not set(flat_keys()) & {*RENAMED, *WITHOUT_EFFECT, *MANAGED, *HINTS}


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("wandb_project: p\n", "wandb_project has no effect: report_to does not name wandb."),
        ("report_to: none\nlogging_dir: l\n", "logging_dir has no effect: report_to does not name tensorboard."),
        ("gradient_checkpointing_kwargs: {use_reentrant: no}\n",
         "gradient_checkpointing_kwargs has no effect: gradient_checkpointing is false."),
        ("shuffle_block_rows: 5\n", "shuffle_block_rows has no effect: streaming is false."),
        ("max_bad_row_share: 0.2\n",
         "max_bad_row_share has no effect: on_bad_rows: error stops at any bad row."),
        ("tokens_per_batch: 2048\nper_device_train_batch_size: 2\n", "per_device_train_batch_size has no effect: "
         "tokens_per_batch says how large a micro-batch is."),
        ("checkpoint_every_n_layers: 2\n", "checkpoint_every_n_layers has no effect: gradient_checkpointing is false."),
        ("torch_compile: yes\n", "torch_compile: without packing or tokens_per_batch, batches differ in size and are "
         "compiled for again."),
    ],
)  # fmt: skip
def test_load_config_says_what_has_no_effect(text, notice):
    assert load(text).notices == (notice,)


def test_load_config_is_silent_where_a_key_has_its_effect_or_its_default():
    assert load("on_bad_rows: skip\nmax_bad_row_share: 0.2\n").notices == ()
    assert load("streaming: yes\nmax_steps: 5\nshuffle_block_rows: 5\n").notices == ()
    assert reloaded(load()).notices == ()


# --- saved, shown, and quick --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lora_config: {}\n",
        "lora_config: {r: 4, lora_alpha: 8, modules_to_save: [lm_head]}\nquantization_config: {load_in_8bit: yes}\n",
        "learning_rate: 5e-5\nsave_steps: 0.3\nlogging_steps: 1e2\nmax_steps: -1\nseed: 4294967295\n",
        "report_to: none\nsample_prompts: []\nsave_total_limit: null\nresume_from_checkpoint: auto\n",
        "run_name: 'null'\nwandb_project: '2024-01-01'\nattn_implementation: 'yes'\nreport_to: wandb\n",
        "run_name: \"a\\n\\tb: 'c' # \\x00\\u2028 é 😀\"\n",
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
def test_every_default_arrives_as_itself_through_yaml(key):
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
def test_every_nested_default_arrives_as_itself_through_yaml(yaml_key):
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


def test_every_key_is_documented_and_stands_in_one_section():
    sections = [*FLAT_SECTIONS.values(), *(section for _, section in NESTED_SECTIONS.values())]
    sections += [record for key in flat_keys().values() if (record := record_type(key.annotation))]
    assert DatasetSource in sections
    for section in sections:
        assert section.__doc__, section
        for key in keys_of(section).values():
            assert len(key.documentation) > 10, key.name
            assert key.documentation.endswith("."), key.name
    names = [name for section in FLAT_SECTIONS.values() for name in keys_of(section)]
    assert len(names) == len(set(names))


def test_format_help_lists_every_key_with_type_default_and_meaning():
    text = format_help()
    folded = " ".join(text.split())
    for name, key in flat_keys().items():
        assert f"\n  --{name}  (" in text
        assert key.documentation in folded
    assert "  --learning_rate  (a number from 0 up; default 5e-05)\n      Peak learning rate." in text
    assert "  --model_name_or_path  (a path; required)\n" in text
    assert "  --report_to  (a name or a list of names; default [tensorboard])\n" in text
    assert "  --lora_config.r  (a whole number from 1 up; default 16)\n      Rank of the adapters.\n" in text
    assert "  --quantization_config.load_in_4bit  (true or false; default false)\n" in text
    assert "  --datasets  (a list of mappings; default [])\n      Several sources of training rows at once" in text
    assert "\n  datasets[].path  (a path or null; default null)\n      A file, a folder or a glob." in text
    assert (
        "\n  datasets[].weight  (a number above 0 to 1000; default 1.0)\n      How often an epoch takes each row"
        in text
    )
    assert all(f"\n  datasets[].{name}  (" in text for name in keys_of(DatasetSource))
    assert max(map(len, text.splitlines())) <= 120


LIGHT = """
import sys
from config_manager import config_to_yaml, format_help, load_config
from sft_errors import ConfigError, located
sys.argv[1] == "help" and format_help()
if sys.argv[1] != "help":
    try:
        config_to_yaml(load_config(sys.argv[1]))
    except ConfigError:
        assert sys.argv[1] == "bad.yaml"
    else:
        assert sys.argv[1] == "good.yaml"
print(sorted({"torch", "transformers", "numpy", "datasets", "peft", "accelerate"} & set(sys.modules)))
"""


@pytest.mark.parametrize("argument", ["help", "good.yaml", "bad.yaml"])
def test_help_a_configuration_and_an_error_import_no_library(folder, argument):
    (folder / "good.yaml").write_text(BASE + "adam_beta1: 0.8\n")
    (folder / "bad.yaml").write_text(BASE + "adam_beta: 0.8\noptim: x\n")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, argument],
        capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(REPOSITORY), "PATH": ""}, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
    # Half a second is the promise on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - started < 3


def test_config_to_yaml_leaves_a_secret_out():
    config = load_config(None, ["--model_name_or_path", "gpt2", "--train_file", __file__, "--hub_token", "hf_secret"])
    assert config.training.extra_training_arguments["hub_token"] == "hf_secret"
    assert "hf_secret" not in config_to_yaml(config)


@pytest.mark.parametrize(("written", "value"), [("0", 0), ("12", 12), ("0.1", 0.1)])
def test_warmup_steps_may_be_a_share(written, value):
    assert load(f"warmup_steps: {written}\n").training.warmup_steps == value


def test_a_tracker_without_its_package_is_refused_at_its_line():
    assert problems_of("report_to: [tensorboard, dvclive]\n") == [
        "my.yaml:3: report_to: dvclive needs the package dvclive: pip install dvclive, or leave it out "
        "(none: no tracker)."
    ]


def test_a_missing_key_is_called_required_once():
    (problem,) = problems_of(base="train_file: train.jsonl\n")
    assert problem.count("equired") == 1


def test_what_is_found_wrong_later_gets_the_place_of_its_key():
    config = load("fp16: yes\nlora_config:\n  target_modules: [q]\n")
    problems = ("fp16: true needs a GPU.", "lora_config.target_modules [q] match nothing.", "GPU: none.")
    assert located(ConfigError(*problems), config.origins).problems == (
        "my.yaml:3: fp16: true needs a GPU.",
        "my.yaml:5: lora_config.target_modules [q] match nothing.",
        "GPU: none.",
    )
