"""Assembly of a configuration: problems with their lines, defaults, entries of `datasets`."""

from __future__ import annotations

import pytest

from sft.common.errors import ConfigError, located
from sft.configuration.keys import keys_of
from sft.configuration.schema import (
    DatasetSource,
)
from tests.support import messages
from tests.support.configurations import MODEL, load, problems_of
from tests.support.paths import REPOSITORY


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
        "my.yaml:4: seed: expected an integer from 0 to 4294967295, found 'x'.",
        "my.yaml:6: bf16: fp16 and bf16 are mutually exclusive; choose one.",
        "my.yaml:8: lora_config.r: 0 is out of range; expected an integer >= 1.",
        "my.yaml:9: load_best_model_at_end: requires validation data; set validation_file or validation_split.",
        "my.yaml:10: tf32: expected true or false, found 'maybe'.",
        "command line: weight_decay: -1 is out of range; expected a number >= 0.",
    ]


def test_load_config_reports_the_keys_missing_from_an_empty_file():
    assert problems_of(base="") == [
        "my.yaml: model_name_or_path: is required. The model to fine-tune: a local folder or a model id on the "
        "Hugging Face Hub.",
        "my.yaml: train_file: no training data; set train_file, dataset_path, dataset_name or datasets.",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 1\nseed: 2\n", ":4: seed: is given twice, first in line 3. Keep one."),
        ("lora_config: {r: 4}\nlora_config.r: 8\n", ":4: lora_config.r: is given twice, first in line 3. Keep one."),
        ("dataset_columns:\n  a: x\n  a: y\n", ":5: dataset_columns.a: is given twice, first in line 4. Keep one."),
        ("<<: {seed: 3}\n", ":3: merge keys (<<) are not supported; write out the keys."),
        ("lora_config:\n  <<: {r: 3}\n", ":4: merge keys (<<) are not supported; write out the keys."),
        ("dataset_columns: {[a]: y}\n", ":3: keys must be strings."),
        ("[a]: y\n", ":3: keys must be strings."),
        ("lr_scheduler_kwargs: &a\n  x: *a\n", ":3: lr_scheduler_kwargs.x: refers to itself."),
        (
            "lr_scheduler_kwargs: {a: !foo x}\n",
            ":3: lr_scheduler_kwargs.a: the tag '!foo' is not supported; remove it.",
        ),
        ("learning_rate:\n  a: b\n", ":3: learning_rate: expected a number >= 0, found a mapping."),
        ("learning_rate:\n", ":3: learning_rate: expected a number >= 0, found no value."),
        ("learning-rate: 1\n", ":3: unknown key 'learning-rate'. Did you mean 'learning_rate'?"),
        ("lr: 1\n", ":3: unknown key 'lr'. Use 'learning_rate' instead."),
        ("lora_r: 1\n", ":3: unknown key 'lora_r'. Use 'lora_config.r' instead."),
        ("lora_config: {lora_alfa: 1}\n", ":3: unknown key 'lora_config.lora_alfa'. Did you mean 'lora_alpha'?"),
        ("banana: 1\n", ":3: unknown key 'banana'. `python sft_main.py --help` lists all keys."),
        (
            "extra_training_arguments: {}\n",
            ":3: unknown key 'extra_training_arguments'. `python sft_main.py --help` lists all keys.",
        ),
        (
            "lora_config: true\n",
            ":3: lora_config: expected indented `key: value` lines, {} for the defaults, or null to disable it; "
            "found 'true'.",
        ),
        (
            "lora_config: {target_modules: []}\n",
            ":3: lora_config.target_modules: is empty; list module names, or use all-linear.",
        ),
        ("save_strategy: off\n", ":3: save_strategy: expected no | steps | epoch | best, found 'off'."),
        ("label_names: [a]\n", ":3: label_names: cannot be set: labels are made from the chat template."),
        (
            "max_length: x\n",
            ":3: max_seq_length (given as max_length): expected an integer from 2 to 1000000000, found 'x'.",
        ),
        (
            "group_by_length: maybe\n",
            ":3: train_sampling_strategy (given as group_by_length): unknown value 'maybe'; choose random | "
            "sequential | group_by_length.",
        ),
        (
            "on_too_long: cut\n",
            ":3: on_too_long: expected truncate | drop | error | split | keep_last_turns, found 'cut'.",
        ),
        ("train_on: first\n", ":3: train_on: expected all | last, found 'first'."),
        ("ddp_comm_hook: bf8\n", ":3: ddp_comm_hook: expected bf16 | fp16, found 'bf8'."),
        (
            "preprocessing_num_workers: 0\n",
            ":3: preprocessing_num_workers: expected an integer >= 1 or auto, found '0'.",
        ),
        ("max_bad_row_share: 1.1\n", ":3: max_bad_row_share: 1.1 is out of range; expected a number from 0 to 1."),
        ("max_leakage_share: -1\n", ":3: max_leakage_share: -1 is out of range; expected a number from 0 to 1."),
        ("shuffle_block_rows: 0\n", ":3: shuffle_block_rows: 0 is out of range; expected an integer >= 1."),
        ("data_cache_dir: ''\n", ":3: data_cache_dir: is empty; give a path or remove the key."),
        ("cutoff_len: 8\n", ":3: unknown key 'cutoff_len'. Use 'max_seq_length' instead."),
        ("dataset_num_proc: 8\n", ":3: unknown key 'dataset_num_proc'. Use 'preprocessing_num_workers' instead."),
        ("mask_history: true\n", ":3: unknown key 'mask_history'. Use 'train_on' instead."),
        ("excess_length_strategy: drop\n", ":3: unknown key 'excess_length_strategy'. Use 'on_too_long' instead."),
        (
            "assistant_only_loss: false\n",
            ":3: assistant_only_loss: cannot be set: only assistant messages of a conversation are trained.",
        ),
        (
            "train_on_inputs: true\n",
            ":3: train_on_inputs: cannot be set: prompts are never trained; the format text trains all tokens.",
        ),
        (
            "sample_prompts:\n  - What is: this\n",
            ":3: sample_prompts: expected a string, found a mapping; quote strings that contain ': '.",
        ),
        (
            "per_gpu_train_batch_size: 2\nper_device_train_batch_size: 3\n",
            ":4: per_device_train_batch_size: is also given in my.yaml:3. Keep one.",
        ),
    ],
)
def test_load_config_reports_the_line_of_a_problem_and_how_to_fix_it(text, problem):
    assert problems_of(text) == ["my.yaml" + problem]


@pytest.mark.parametrize("name", ["powersgd", "PowerSGD", "power_sgd", "batched_power_sgd"])
def test_a_value_that_other_trainers_accept_is_rejected_with_the_reason(name):
    (problem,) = problems_of(f"ddp_comm_hook: {name}\n")
    assert problem.startswith(f"my.yaml:3: ddp_comm_hook: expected bf16 | fp16, found '{name}' (")
    assert messages.POWERSGD_REASON in problem


@pytest.mark.parametrize(
    "text",
    [
        "validation_file: [a]\nload_best_model_at_end: true\n",
        "lora_config: yes\nquantization_config: {load_in_4bit: yes}\n",
        "quantization_config: {load_in_4bit: maybe}\nlora_config: {}\n",
    ],
)
def test_load_config_reports_no_contradictions_with_an_invalid_value(text):
    assert [problem.split(":")[1] for problem in problems_of(text)] == ["3"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("train.jsonl", [DatasetSource(path="train.jsonl")]),
        ("{path: train.jsonl}", [DatasetSource(path="train.jsonl")]),
        ("[train.jsonl, '*.jsonl']", [DatasetSource(path="train.jsonl"), DatasetSource(path="*.jsonl")]),
        (
            "\n- train.jsonl\n- name: a/b\n  config: 2024\n  split: no\n",
            [DatasetSource(path="train.jsonl"), DatasetSource(name="a/b", config="2024", split="no")],
        ),
        (
            "[{path: train.jsonl, weight: 5e-1, columns: {q: question}, max_rows: 1_000, format: squad}]",
            [DatasetSource(path="train.jsonl", weight=0.5, columns={"q": "question"}, max_rows=1000, format="squad")],
        ),
        ("[{path: null, name: x}]", [DatasetSource(name="x")]),
        ("[&a {path: train.jsonl}, *a]", [DatasetSource(path="train.jsonl")] * 2),
    ],
)
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
        (
            ["b: c.jsonl", "{name: x, max_rows: 5}"],
            [DatasetSource(path="b: c.jsonl"), DatasetSource(name="x", max_rows=5)],
        ),
        (["[tx]rain.jsonl"], [DatasetSource(path="[tx]rain.jsonl")]),
    ],
)
def test_load_config_replaces_datasets_of_the_file_by_those_of_the_command_line(folder, arguments, expected):
    (folder / "b: c.jsonl").write_text("{}\n")
    config = load("datasets: [{path: nowhere, weigth: 0}]\n", "--datasets", *arguments, base=MODEL)
    assert config.data.datasets == expected
    assert load("", "--datasets", *arguments, base=MODEL).data.datasets == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--datasets"], "datasets: requires a value: a list of mappings."),
        (["--datasets", "null"], "datasets: expected a list of mappings, found null."),
        (["--datasets", "{path: train.jsonl, wieght: 3}"], "datasets[0]: unknown key 'wieght'. Did you mean 'weight'?"),
        (["--datasets", "{name: a, name: b}"], "datasets.name: is given twice. Keep one."),
        (
            ["--datasets[0].weight", "2"],
            "unknown key 'datasets[0].weight'. Give all entries at once: datasets: [{path: ...}, ...].",
        ),
        (
            ["--datasets.path", "a"],
            "unknown key 'datasets.path'. Give all entries at once: datasets: [{path: ...}, ...].",
        ),
    ],
)
def test_load_config_rejects_invalid_datasets_on_the_command_line(arguments, problem):
    assert problems_of("", *arguments, base=MODEL) == [f"command line: {problem}"]


def test_load_config_reports_the_line_of_each_invalid_key_of_each_entry(folder):
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
        f"my.yaml:3: datasets[0].path: no such file or folder: 'trian.jsonl' (current directory: {folder}). Did "
        f"you mean 'train.jsonl'?",
        "my.yaml:5: datasets[1].weight: expected a number > 0 and <= 1000, found 'x'.",
        "my.yaml:6: datasets[1].format: unknown format 'alpacca'. Did you mean 'alpaca'?",
        "my.yaml:7: datasets[1].columns: expected a mapping like {a: b}, found a list of 1 item.",
        "my.yaml:9: datasets[2]: unknown key 'pth'. Did you mean 'path'?",
        "my.yaml:10: datasets[3]: expected a mapping like {path: ...}, found a list of 1 item.",
        "my.yaml:11: datasets[4]: expected a mapping like {path: ...}, found no value.",
        "my.yaml:12: datasets[5]: unknown key 'type'. Use 'format' instead.",
        "my.yaml:13: datasets[5].max_rows: 0 is out of range; expected an integer >= 1.",
        "my.yaml:13: datasets[5]: unknown key 'banana'. Allowed: path, name, config, revision, split, "
        "format, weight, probability, columns, max_rows, chat_template_kwargs, system_prompt, system_prompt_policy, "
        "row_function, row_filter.",
        "my.yaml:15: datasets[6].path: is given twice, first in line 14. Keep one.",
    ]
    assert problems_of(text, base=MODEL) == [
        "my.yaml:15: datasets[6].path: is given twice, first in line 14. Keep one.",
        "my.yaml:16: merge keys (<<) are not supported; write out the keys.",
    ]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{path: [a]}", "datasets[0].path: expected a path, found a list of 1 item"),
        ("{nam: a/b, config: main}", "datasets[0]: unknown key 'nam'. Did you mean 'name'?"),
        ("{name: [a], config: main}", "datasets[0].name: expected a string, found a list of 1 item"),
        ("{path: &a [*a]}", "datasets[0].path[0]: refers to itself."),
        ("!foo train.jsonl", "datasets[0]: the tag '!foo' is not supported; remove it."),
    ],
)
def test_load_config_reports_no_contradictions_with_an_invalid_entry(entry, problem):
    (only,) = problems_of(f"datasets: [{entry}]\n", base=MODEL)
    assert only.startswith(f"my.yaml:2: {problem}")


def test_every_key_of_every_entry_has_an_origin():
    origins = load("datasets:\n  - train.jsonl\n  - name: x\n    weight: 2\n", base=MODEL).origins
    assert {key: place for key, place in origins.items() if key.startswith("datasets")} == {
        "datasets": "my.yaml:2",
        "datasets[0]": "my.yaml:3",
        "datasets[0].path": "my.yaml:3",
        "datasets[1]": "my.yaml:4",
        "datasets[1].name": "my.yaml:4",
        "datasets[1].weight": "my.yaml:5",
    }


NOT_SHOWN = ("name", "config", "revision", "probability")
NOT_SHOWN += ("chat_template_kwargs", "system_prompt", "system_prompt_policy")
"""Keys of an entry that the sample configuration leaves to the documentation."""


def test_datasets_in_the_sample_configuration_load(folder):
    lines = (REPOSITORY / "sample_config.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("# datasets:"))
    end = next(number for number in range(start + 1, len(lines)) if not lines[number].startswith("#   "))
    (folder / "data" / "support").mkdir(parents=True)
    (folder / "data" / "support" / "a.jsonl").touch()
    (folder / "data" / "faq.csv").touch()
    (folder / "my_rows.py").write_text("def to_messages(row): ...\n\n\ndef keep(row): ...\n")
    text = "".join(line.removeprefix("# ") + "\n" for line in lines[start:end])
    sources = load(text, base=MODEL).data.datasets
    assert [source.path for source in sources] == ["data/support/*.jsonl", "data/faq.csv"]
    assert all(f" {key}:" in text for key in keys_of(DatasetSource) if key not in NOT_SHOWN)


def test_a_missing_key_is_reported_as_required_once():
    (problem,) = problems_of(base="train_file: train.jsonl\n")
    assert problem.count("equired") == 1


def test_located_adds_the_origin_of_the_key():
    config = load("fp16: yes\nlora_config:\n  target_modules: [q]\n")
    problems = ("fp16: true needs a GPU.", "lora_config.target_modules [q] match nothing.", "GPU: none.")
    assert located(ConfigError(*problems), config.origins).problems == (
        "my.yaml:3: fp16: true needs a GPU.",
        "my.yaml:5: lora_config.target_modules [q] match nothing.",
        "GPU: none.",
    )
