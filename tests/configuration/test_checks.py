"""Checks between settings, and notices of settings without effect."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from sft.common.files import NOT_UTF8
from sft.configuration.keys import flat_keys
from tests.support import messages
from tests.support.configurations import MODEL, VALIDATED, load, problems_of, reloaded
from tests.support.paths import ODD_NAMES

OPTIMIZER = flat_keys()["optim"].default


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "quantization_config: {load_in_4bit: yes, load_in_8bit: yes}\nlora_config: {}\n",
            ":3: quantization_config.load_in_8bit: load_in_4bit and load_in_8bit are mutually exclusive; choose one.",
        ),
        (
            "quantization_config: {}\nlora_config: {}\n",
            ":3: quantization_config: neither load_in_4bit nor load_in_8bit is set; set one to true.",
        ),
        (
            "quantization_config: {load_in_4bit: yes}\n",
            ":3: quantization_config: quantized weights cannot be trained directly; add a lora_config section.",
        ),
        (
            "quantization_config.load_in_4bit: yes\n",
            ":3: quantization_config: quantized weights cannot be trained directly; add a lora_config section.",
        ),
        (
            "dtype: float16\n",
            ":3: dtype: float16 weights cannot be trained; use auto, or add lora_config to train adapters only.",
        ),
        (
            "gguf_file: a.gguf\nlora_config: {}\nquantization_config: {load_in_4bit: yes}\n",
            ":3: gguf_file: cannot be combined with quantization_config, because its weights are dequantized; "
            "choose one.",
        ),
        (
            "dataset_name: a/b\n",
            ": train_file: conflicts with dataset_name, which already gives the training data; choose one.",
        ),
        ("dataset_config_name: main\n", ":3: dataset_config_name: requires dataset_name."),
        (
            "validation_split: 0.1\nvalidation_file: train.jsonl\n",
            ":3: validation_split: conflicts with validation_file; choose one, or name the files: "
            "validation_file: {name: file}.",
        ),
        ("warmup_steps: 1\nwarmup_ratio: 0.1\n", ":4: warmup_ratio: conflicts with warmup_steps; choose one."),
        ("optim: adamw_torh\n", ":3: optim: unknown value 'adamw_torh'. Did you mean 'adamw_torch'?"),
        ("optim: adam\n", f":3: optim: unknown value 'adam'. Did you mean {OPTIMIZER!r}?"),
        ("optim: AdamW\n", f":3: optim: unknown value 'AdamW'. Did you mean {OPTIMIZER!r}?"),
        (
            "per_device_batch_size: 4\n",
            ":3: unknown key 'per_device_batch_size'. Use 'per_device_train_batch_size' instead.",
        ),
        ("lr_scheduler_type: cosin\n", ":3: lr_scheduler_type: unknown value 'cosin'. Did you mean 'cosine'?"),
        ("output_dir: train.jsonl\n", ":3: output_dir: 'train.jsonl' is a file; give a folder."),
        (
            "resume_from_checkpoint: nowhere\n",
            ":3: resume_from_checkpoint: no such folder: 'nowhere'; give a checkpoint folder, or use auto.",
        ),
        ("report_to: tensorbord\n", ":3: report_to: unknown tracker 'tensorbord'. Did you mean 'tensorboard'?"),
        ("eval_steps: 5\n", ":3: eval_steps: requires validation data; set validation_file or validation_split."),
        (
            "eval_strategy: epoch\n",
            ":3: eval_strategy: requires validation data; set validation_file or validation_split.",
        ),
        (
            "save_strategy: best\n",
            ":3: save_strategy: requires validation data; set validation_file or validation_split.",
        ),
        (
            "lr_scheduler_type: reduce_lr_on_plateau\n",
            ":3: lr_scheduler_type: requires validation data; set validation_file or validation_split.",
        ),
        ("save_strategy: epoch\nsave_steps: 5\n", ":4: save_steps: conflicts with save_strategy: epoch; choose one."),
        ("save_strategy: steps\n", ":3: save_strategy: steps requires save_steps."),
        (
            "bf16_full_eval: yes\n",
            ":3: bf16_full_eval: cannot be set: evaluation uses the same mixed precision as training.",
        ),
        (
            "metric_for_best_model: eval_los\n",
            ":3: metric_for_best_model: unknown value 'eval_los'; "
            "choose loss | loss_unweighted | perplexity | token_accuracy | sequence_accuracy. Did you mean 'loss'?",
        ),
        ("dataloader_prefetch_factor: 2\n", ":3: dataloader_prefetch_factor: requires dataloader_num_workers above 0."),
        ("torch_empty_cache_steps: 0\n", ":3: torch_empty_cache_steps: must be a positive integer or null, but is 0."),
        ("adam_beta1: 1.0\n", ":3: adam_beta1: 1.0 is out of range; expected a number >= 0 and < 1."),
        ("adam_beta2: -0.1\n", ":3: adam_beta2: -0.1 is out of range; expected a number >= 0 and < 1."),
        ("adam_epsilon: -1\n", ":3: adam_epsilon: -1.0 is out of range; expected a number >= 0."),
        (
            "label_smoothing_factor: 2\n",
            ":3: label_smoothing_factor: 2.0 is out of range; expected a number from 0 to 1.",
        ),
        ("neftune_noise_alpha: -5\n", ":3: neftune_noise_alpha: -5.0 is out of range; expected a number >= 0."),
        ("optim_args: foo\n", ":3: optim_args: expected name=value, name=value, found 'foo'."),
    ],
)
def test_load_config_rejects_contradictions(text, problem):
    expected = "my.yaml" + problem
    if messages.CONFLICTS_WITH.format(key="dataset_name") in problem:
        expected = "my.yaml:2" + problem
    assert problems_of(text) == [expected]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "eval_strategy: no\n",
            ":4: load_best_model_at_end: requires evaluation, but eval_strategy is no; choose one.",
        ),
        ("save_strategy: no\n", ":4: load_best_model_at_end: requires checkpoints, but save_strategy is no."),
        (
            "eval_steps: 5\n",
            ":4: load_best_model_at_end: evaluation and saving must happen at the same steps, but eval_steps is "
            "5 and save_steps is null; set both or neither.",
        ),
        (
            "eval_steps: 5\nsave_steps: 7\n",
            ":6: save_steps: must be a multiple of eval_steps (5) with load_best_model_at_end.",
        ),
        (
            "eval_steps: 5\nsave_steps: 0.5\n",
            ":6: save_steps: must be a multiple of eval_steps (5) with load_best_model_at_end.",
        ),
    ],
)
def test_load_config_rejects_a_schedule_that_cannot_keep_the_best_model(text, problem):
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
        (
            "trian.jsonl",
            "no such file or folder: 'trian.jsonl' (current directory: {folder}). Did you mean 'train.jsonl'?",
        ),
        ("no/such.jsonl", "no such file or folder: 'no/such.jsonl' (current directory: {folder})."),
        ("'*.csv'", "no file matches '*.csv' (current directory: {folder})."),
        ("''", "is empty; give a path or remove the key."),
        ("x" * 5000, "no such file or folder: '" + "x" * 5000 + "' (current directory: {folder})."),
        ("train.jsonl/a", "no such file or folder: 'train.jsonl/a' (current directory: {folder})."),
    ],
    ids=["typo", "folder", "glob", "empty", "too long", "under a file"],
)
def test_load_config_reports_a_missing_data_file(folder, value, problem):
    problems = problems_of(f"validation_file: {value}\n")
    assert problems == ["my.yaml:3: validation_file: " + problem.format(folder=folder)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_load_config_takes_paths_of_any_name(folder, name):
    (folder / name).mkdir()
    (folder / name / f"{name}.jsonl").write_text("{}\n")
    text = yaml.safe_dump(
        {
            "model_name_or_path": "m",
            "train_file": f"{name}/{name}.jsonl",
            "validation_file": str(folder / name / "*.jsonl"),
            "data_cache_dir": f"{name}/cache",
            **({"output_dir": f"{name}/out"} if name.isprintable() else {}),
        }
    )
    config = load(text, base="")
    assert config.data.train_file == f"{name}/{name}.jsonl"
    assert (
        load("", f"--train_file={name}/{name}.jsonl").data
        == load(f"train_file: {json.dumps(f'{name}/{name}.jsonl')}\n", base=MODEL).data
    )
    assert reloaded(config) == config


@pytest.mark.parametrize(
    "key", ["model_name_or_path", "tokenizer_name_or_path", "output_dir", "resume_from_checkpoint"]
)
@pytest.mark.parametrize("name", [b"\xff", b"a/\xe9t\xe9", b"./\xc3"])
def test_load_config_refuses_bytes_that_model_files_cannot_have(folder, key, name):
    path = os.fsdecode(name)
    (folder / path).mkdir(parents=True)
    base = "" if key == "model_name_or_path" else MODEL
    (problem,) = problems_of("train_file: train.jsonl\n", f"--{key}={path}", base=base)
    assert problem == f"command line: {key}: {NOT_UTF8.format(path=path)}"
    assert problem.isascii()


def test_load_config_finds_data_under_dataset_path(folder):
    (folder / "corpus").mkdir()
    (folder / "corpus" / "a.jsonl").write_text("{}\n")
    base = "model_name_or_path: m\ndataset_path: corpus\n"
    assert load("train_file: '*.jsonl'\n", base=base).data.train_file == "*.jsonl"
    assert problems_of("train_file: b.jsonl\n", base=base) == [
        f"my.yaml:3: train_file: no such file or folder: 'corpus/b.jsonl' (current directory: {folder}). Did "
        f"you mean 'a.jsonl'?"
    ]


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/where", "a/b/c", "nowhere/", pytest.param("./" + "x" * 5000, id="long")]
)
def test_load_config_rejects_a_missing_model_folder(folder, name):
    assert problems_of(f"model_name_or_path: {name}\ntrain_file: train.jsonl\n", base="") == [
        f"my.yaml:1: model_name_or_path: no such folder: {name!r} (current directory: {folder})."
    ]


@pytest.mark.parametrize("key", ["model_name_or_path", "tokenizer_name_or_path"])
def test_a_missing_model_folder_is_answered_with_a_similar_name(folder, key):
    (folder / "my_model").mkdir()
    others = {"train_file": "train.jsonl", "model_name_or_path": "gpt2"} | {key: "./my_modell"}
    (problem,) = problems_of("".join(f"{name}: {value}\n" for name, value in others.items()), base="")
    assert problem.endswith(f"no such folder: './my_modell' (current directory: {folder}). Did you mean 'my_model'?")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *(
            (
                f"train_file: train.jsonl\nunanswerable: {given}\n",
                f':3: unanswerable: {found!r} is neither skip nor a text to answer, like "I don\'t know.".',
            )
            for given, found in (("''", ""), ("' '", " "), ("drop", "drop"), ("Skip", "Skip"), ("error", "error"))
        ),
        ("datasets:\n", ":2: datasets: expected a list of mappings, found no value."),
        ("datasets: []\n", ": train_file: no training data; set train_file, dataset_path, dataset_name or datasets."),
        ("datasets:\n  - weight: 2\n", ":3: datasets[0]: no data source; set path or name."),
        ("datasets:\n  - {}\n", ":3: datasets[0]: no data source; set path or name."),
        (
            "datasets:\n  - name: a/b\n    path: train.jsonl\n",
            ":3: datasets[0]: path and name are mutually exclusive; choose one.",
        ),
        ("datasets:\n  - path: train.jsonl\n    config: main\n", ":4: datasets[0].config: requires name."),
        ("datasets: ['']\n", ":2: datasets[0].path: is empty; give a path or remove the key."),
        ("datasets: ['*.csv']\n", ":2: datasets[0].path: no file matches '*.csv' (current directory: {folder})."),
        (
            "datasets:\n  - train.jsonl\n  - openai/gsm8k\n",
            ":4: datasets[1].path: no such file or folder: 'openai/gsm8k' (current directory: {folder}). To "
            "load a dataset from the Hugging Face Hub, use name.",
        ),
        (
            "datasets: squad\n",
            ":2: datasets[0].path: no such file or folder: 'squad' (current directory: {folder}). To load the dataset "
            "from the Hugging Face Hub, use name: rajpurkar/squad.",
        ),
        (
            "train_file: gsm8k\n",
            ":2: train_file: no such file or folder: 'gsm8k' (current directory: {folder}). To load the dataset from "
            "the Hugging Face Hub, set dataset_name: openai/gsm8k.",
        ),
        (
            "datasets:\n  - name: x\n    format: zzz\n",
            ":4: datasets[0].format: unknown format 'zzz'. Allowed: input_ids, messages, "
            "conversations, squad, alpaca, prompt_completion, question_answer, input_output, text.",
        ),
        (
            "datasets: train.jsonl\ntrain_file: train.jsonl\n",
            ":3: train_file: conflicts with datasets, which already gives the training data; choose one.",
        ),
        (
            "datasets: train.jsonl\ndataset_path: .\n",
            ":3: dataset_path: conflicts with datasets, which already gives the training data; choose one.",
        ),
        (
            "datasets: train.jsonl\ndataset_name: a/b\n",
            ":3: dataset_name: conflicts with datasets, which already gives the training data; choose one.",
        ),
        (
            "datasets: train.jsonl\ndataset_columns: {a: text}\n",
            ":3: dataset_columns: cannot be combined with datasets; set columns in each entry instead.",
        ),
        (
            "datasets:\n  - {path: train.jsonl, probability: 0.5, weight: 2}\n"
            "  - {path: train.jsonl, probability: 0.5}\n",
            ":3: datasets[0].probability: conflicts with weight, which says how often each row is used; choose one.",
        ),
        (
            "datasets:\n  - {path: train.jsonl, probability: 0.5}\n  - path: train.jsonl\n",
            ":2: datasets: probability must be set in all entries or in none; datasets[1] has none.",
        ),
        (
            "datasets:\n  - {path: train.jsonl, probability: 0.5}\n  - {path: train.jsonl, probability: 0.4}\n",
            ":2: datasets: the probabilities of all entries must sum to 1, but their sum is 0.9.",
        ),
        (
            "datasets: train.jsonl\ndatasets_stop: all_exhausted\n",
            ":3: datasets_stop: requires the key probability in each entry of datasets.",
        ),
        (
            "datasets: train.jsonl\nsplit_overlap: 4\n",
            ":3: split_overlap: requires on_too_long: split.",
        ),
        (
            "datasets: train.jsonl\non_too_long: split\nmax_seq_length: 64\nsplit_overlap: 64\n",
            ":5: split_overlap: must be below max_seq_length (64), but is 64.",
        ),
        (
            "datasets: train.jsonl\neval_steps: 5\n",
            ":3: eval_steps: requires validation data; set validation_file or validation_split.",
        ),
    ],
)
def test_load_config_rejects_contradictions_of_datasets(folder, text, problem):
    assert problems_of(text, base=MODEL) == ["my.yaml" + problem.replace("{folder}", str(folder))]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", ":3: streaming: requires max_steps, because the number of rows is not known in advance."),
        (
            "max_steps: 5\nvalidation_split: 0.1\n",
            ":5: validation_split: cannot be combined with streaming, which stores no rows; use validation_file.",
        ),
        (
            "max_steps: 5\ntrain_sampling_strategy: group_by_length\n",
            ":5: train_sampling_strategy: group_by_length cannot be combined with streaming, because row "
            "lengths are not known in advance; choose one.",
        ),
        (
            "max_steps: 5\norder: by_length\n",
            ":5: order: by_length cannot be combined with streaming, because row lengths are not known in advance.",
        ),
        (
            "max_steps: 5\ngroup_by_length: yes\n",
            ":5: train_sampling_strategy (given as group_by_length): "
            "group_by_length cannot be combined with streaming, because row lengths are not known in advance; "
            "choose one.",
        ),
    ],
)
def test_load_config_rejects_contradictions_of_streaming(text, problem):
    assert problems_of("streaming: yes\n" + text) == ["my.yaml" + problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "packing: yes\ntokens_per_batch: 2048\n",
            ":4: tokens_per_batch: cannot be combined with packing, whose packs hold max_seq_length tokens; "
            "choose one.",
        ),
        ("tokens_per_batch: 512\n", ":3: tokens_per_batch: must be at least max_seq_length (1024), but is 512."),
        (
            "packing: yes\npadding_free: no\n",
            ":3: packing: requires padding-free micro-batches, but padding_free is false; choose one.",
        ),
        (
            "packing: yes\nstreaming: yes\nmax_steps: 5\n",
            ":3: packing: cannot be combined with streaming, because row lengths are not known in advance; choose one.",
        ),
        (
            "tokens_per_batch: 2048\ntrain_sampling_strategy: group_by_length\n",
            ":3: tokens_per_batch: cannot be combined with train_sampling_strategy: group_by_length; choose one.",
        ),
        (
            "packing: yes\norder: by_length\n",
            ":3: packing: cannot be combined with order: by_length; choose one.",
        ),
        (
            "order: given\ntrain_sampling_strategy: random\n",
            ":3: order: conflicts with train_sampling_strategy, which sets the order too; choose one.",
        ),
        (
            "torch_compile: no\ntorch_compile_mode: max-autotune\n",
            ":4: torch_compile_mode: requires torch_compile: true or auto.",
        ),
        (
            "gradient_checkpointing: yes\ncheckpoint_every_n_layers: 2\n"
            "gradient_checkpointing_kwargs: {every_n_layers: 3}\n",
            ":4: checkpoint_every_n_layers: conflicts with every_n_layers in gradient_checkpointing_kwargs; "
            "choose one.",
        ),
        (
            "checkpoint_every_n_layers: 0\n",
            ":3: checkpoint_every_n_layers: 0 is out of range; expected an integer >= 1.",
        ),
    ],
)
def test_load_config_rejects_contradictions_of_batching(text, problem):
    assert problems_of(text) == ["my.yaml" + problem]


def test_load_config_rejects_weights_of_streamed_sources():
    entries = "- name: x\n  weight: 2\n- {name: y, weight: 1}\n- {name: z, weight: .5}\n"
    assert problems_of("streaming: yes\nmax_steps: 5\ndatasets:\n" + entries, base=MODEL) == [
        "my.yaml:6: datasets[0].weight: cannot be combined with streaming, which reads each source once; use "
        "probability.",
        "my.yaml:8: datasets[2].weight: cannot be combined with streaming, which reads each source once; use "
        "probability.",
    ]


def test_load_config_accepts_streaming_with_validation_data_and_epochs():
    text = "streaming: yes\nmax_steps: 5\nnum_train_epochs: 2\nvalidation_file: train.jsonl\neval_steps: 5\n"
    assert load(text).data.streaming is True


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("wandb_project: p\n", "wandb_project has no effect: report_to does not include wandb."),
        ("report_to: none\nlogging_dir: l\n", "logging_dir has no effect: report_to does not include tensorboard."),
        (
            "gradient_checkpointing_kwargs: {use_reentrant: no}\n",
            "gradient_checkpointing_kwargs has no effect: gradient_checkpointing is false.",
        ),
        ("fsdp: {}\nddp_bucket_cap_mb: 5\n", "ddp_bucket_cap_mb has no effect: FSDP sums the gradients."),
        ("fsdp: {}\nddp_comm_hook: bf16\n", "ddp_comm_hook has no effect: FSDP sums the gradients."),
        ("shuffle_block_rows: 5\n", "shuffle_block_rows has no effect: streaming is false."),
        ("max_bad_row_share: 0.2\n", "max_bad_row_share has no effect: on_bad_rows: error stops at any bad row."),
        (
            "tokens_per_batch: 2048\nper_device_train_batch_size: 2\n",
            "per_device_train_batch_size has no effect: tokens_per_batch sets the micro-batch size.",
        ),
        ("checkpoint_every_n_layers: 2\n", "checkpoint_every_n_layers has no effect: gradient_checkpointing is false."),
        (
            "torch_compile: yes\n",
            "torch_compile: without packing or tokens_per_batch, batches vary in size, and each new size recompiles.",
        ),
    ],
)
def test_load_config_reports_settings_without_effect(text, notice):
    assert load(text).notices == (notice,)


@pytest.mark.parametrize(
    ("rate", "is_logged"), [("2e5", True), ("1", True), ("0.51", True), ("0.5", False), ("0.1", False), ("2e-5", False)]
)
def test_a_learning_rate_without_its_minus_sign_is_logged(rate, is_logged):
    notices = load(f"learning_rate: {rate}\n").notices
    assert [notice.split(",")[0] for notice in notices] == [f"learning_rate is {float(rate):g}"] * is_logged


def test_load_config_reports_no_effective_or_default_settings():
    assert load("on_bad_rows: skip\nmax_bad_row_share: 0.2\n").notices == ()
    assert load("streaming: yes\nmax_steps: 5\nshuffle_block_rows: 5\n").notices == ()
    assert reloaded(load()).notices == ()


def test_load_config_rejects_a_tracker_without_its_package():
    assert problems_of("report_to: [tensorboard, dvclive]\n") == [
        "my.yaml:3: report_to: dvclive requires the package dvclive: pip install dvclive, or remove dvclive "
        "from the list."
    ]


@pytest.mark.parametrize("key", ["model_name_or_path", "tokenizer_name_or_path"])
@pytest.mark.parametrize("output", ["base", "./base/", "other/../base", "link"])
def test_load_config_refuses_to_overwrite_what_it_trains(folder, key, output):
    (folder / "base").mkdir()
    (folder / "other").mkdir()
    (folder / "link").symlink_to("base")
    base = "" if key == "model_name_or_path" else MODEL
    (problem,) = problems_of(f"train_file: train.jsonl\n{key}: base\noutput_dir: {output}\n", base=base)
    assert problem.endswith(f"output_dir: is the folder of {key}, which would be overwritten; give another.")
    assert load(f"train_file: train.jsonl\n{key}: base\noutput_dir: base/out\n", base=base)
