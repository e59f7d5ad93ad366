"""Reading of YAML files and command line settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from config_manager import load_config
from sft.common.errors import ConfigError
from sft.configuration.keys import flat_keys
from sft.configuration.schema import (
    LoRAConfig,
    QuantizationConfig,
)
from tests.support import messages
from tests.support.configurations import BASE, load, problems_of, value_of


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


def test_load_config_reports_an_empty_section_as_disabled():
    config = load("lora_config:\n")
    assert config.lora is None
    assert config.notices == ("my.yaml:3: lora_config is empty, so it is disabled; use {} for the defaults.",)
    assert load("lora_config: null\n").notices == ()


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
        (["--optim_args", "a=1,b=c: 2"], "optim_args", "a=1,b=c: 2"),
    ],
)
def test_load_config_reads_the_command_line_as_meant(arguments, key, expected):
    assert value_of(load("", *arguments), key) == expected


def test_load_config_prefers_the_command_line_to_the_file():
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
    with pytest.raises(ConfigError, match="^command line: " + messages.IS_REQUIRED.format(key="model_name_or_path")):
        load_config(None, ["--train_file", "train.jsonl"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["stray"], "unexpected argument 'stray'; settings are given as --key value."),
        (["my.yaml"], "unexpected argument 'my.yaml'; give the configuration with --config_file."),
        (["my.yml"], "unexpected argument 'my.yml'; give the configuration with --config_file."),
        (["-x"], "unexpected argument '-x'; settings are given as --key value."),
        (["--"], "unexpected argument '--'; settings are given as --key value."),
        (["--run_name"], "run_name: requires a value: a string or null."),
        (["--output_dir", "--bf16"], "output_dir: requires a value: a path."),
        (["--lora_config.r"], "lora_config.r: requires a value: an integer >= 1."),
        (["--run_name", "my", "run"], "run_name: takes one value, found 2: my run. Quote values that contain spaces."),
        (["--max_steps", "-2"], "max_steps: -2 is out of range; expected an integer >= 1, or -1."),
        (["--learning_rate", "x"], "learning_rate: expected a number >= 0, found 'x'."),
        (["--dataset_columns", "a"], "dataset_columns: expected a mapping like {a: b}, found 'a'."),
        (["--dataset_columns", "{a: b, a: c}"], "dataset_columns.a: is given twice. Keep one."),
        (["--learning_rat", "1"], "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
        (
            ["--lora_config.rank", "1"],
            "unknown key 'lora_config.rank'. Allowed: r, lora_alpha, target_modules, target_parameters, "
            "lora_dropout, bias, task_type, use_rslora, use_dora, modules_to_save.",
        ),
    ],
)
def test_load_config_rejects_an_invalid_command_line(arguments, problem):
    assert problems_of("", *arguments) == [f"command line: {problem}"]


QUOTES = "quote strings that contain ': ' or begin with * & ! % @ `"
OPEN_QUOTE = (
    "while scanning a quoted scalar, found unexpected end of stream; "
    "close the quote, and write a quote inside of it twice"
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"- a\n- b\n", ":1: expected lines like `learning_rate: 1e-4`, found a list."),
        (b"just text\n", ":1: expected lines like `learning_rate: 1e-4`, found a single string."),
        (
            b"lora_config:\n\tr: 8\n",
            ":2: not valid YAML: while scanning for the next token, found character '\\t' that "
            "cannot start any token; use spaces, not tabs (column 1).",
        ),
        (
            b"a: 1\ntrain_file: *.jsonl\n",
            ":2: not valid YAML: while scanning an alias, expected alphabetic or numeric "
            f"character, but found '.'; {QUOTES} (column 14).",
        ),
        (b"run_name: a: b\n", f":1: not valid YAML: mapping values are not allowed here; {QUOTES} (column 12)."),
        (b"a: 1\nb: 'open\nc: 2\n", f":2: not valid YAML: {OPEN_QUOTE} (column 4)."),
        (b'a: 1\nb: "open\n\nc: 2\n', f":2: not valid YAML: {OPEN_QUOTE} (column 4)."),
        (
            b"a: 1\n---\nb: 2\n",
            ":2: not valid YAML: expected a single document in the stream, but found another document (column 1).",
        ),
        (b"a: \xff\n", ": is not UTF-8 text (byte 3); save it as UTF-8."),
        ("a: 1\n".encode("utf-16"), ": is not UTF-8 text (byte 0); save it as UTF-8."),
        (
            b"a: \x00\n",
            ": not valid YAML: unacceptable character #x0000: special characters are not allowed in "
            '"<unicode string>", position 3',
        ),
        (b"[\n" * 3000, ": not valid YAML: nested too deeply."),
    ],
    ids=[
        "list",
        "text",
        "tab",
        "star",
        "colon",
        "quote",
        "double quote",
        "two documents",
        "latin-1",
        "utf-16",
        "binary",
        "deep",
    ],
)
def test_load_config_rejects_invalid_files(content, problem):
    Path("my.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config("my.yaml")
    assert caught.value.problems == ("my.yaml" + problem,)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("none.yaml", "none.yaml: no such file. Give the configuration with --config_file."),
        (".", ".: is a folder, but --config_file expects a YAML file."),
        ("train.jsonl/a", "train.jsonl/a: cannot be read: Not a directory."),
    ],
)
def test_load_config_rejects_a_path_that_is_not_a_file(path, problem):
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(("written", "value"), [("0", 0), ("12", 12), ("0.1", 0.1)])
def test_warmup_steps_may_be_a_share(written, value):
    assert load(f"warmup_steps: {written}\n").training.warmup_steps == value
