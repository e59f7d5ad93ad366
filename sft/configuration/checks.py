"""What must hold between settings: every contradiction that can be seen without loading a library or a model."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sft.common.did_you_mean import did_you_mean
from sft.configuration.batch_sizes import batch_size_contradictions
from sft.configuration.fsdp import deepspeed_contradictions, fsdp_contradictions
from sft.configuration.installed_transformers import optimizer_names, scheduler_names
from sft.configuration.keys import flat_keys
from sft.configuration.passed_through import PassedThrough
from sft.configuration.schema import RECORD_FORMATS, DatasetSource, SFTConfig

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "flyte": ("flytekit",),
    **{
        name: (name,)
        for name in ("wandb", "mlflow", "comet_ml", "clearml", "neptune", "dagshub", "codecarbon", "swanlab", "trackio",
                     "dvclive")
    },
}  # fmt: skip
"""Tracker -> the packages of which it needs one."""
NEED_VALIDATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the validation loss."""
EVALUATION_METRICS = ("loss", "perplexity", "token_accuracy", "sequence_accuracy")
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")


class Contradiction(NamedTuple):
    """A problem with a key; the caller adds the file and line in which the key stands."""

    key: str
    message: str


def find_contradictions(config: SFTConfig) -> Iterator[Contradiction]:
    """Everything that does not fit together, or names what is not there."""
    yield from _check_model(config)
    yield from _check_data(config)
    yield from _check_datasets(config)
    yield from _check_streaming(config)
    yield from _check_training(config)
    yield from (Contradiction(*found) for found in batch_size_contradictions(config.training))
    yield from (Contradiction(*found) for found in fsdp_contradictions(config))
    yield from (Contradiction(*found) for found in deepspeed_contradictions(config))
    yield from _check_speed(config)
    yield from _check_passed_through(config)
    yield from _check_evaluation_schedule(config)
    yield from _check_logging(config)


def find_notices(config: SFTConfig) -> Iterator[str]:
    """Settings that have no effect beside the others: said, not refused."""
    trackers = config.logging.report_to
    if config.logging.wandb_project and "wandb" not in trackers:
        yield "wandb_project has no effect: report_to does not name wandb."
    if config.logging.logging_dir and "tensorboard" not in trackers:
        yield "logging_dir has no effect: report_to does not name tensorboard."
    data, training = config.data, config.training
    # A value that differs from the default was given; the default itself, as a saved configuration writes it, asks for
    # nothing.
    if not data.streaming and data.shuffle_block_rows != _default("shuffle_block_rows"):
        yield "shuffle_block_rows has no effect: streaming is false."
    if data.streaming and training.passed_through.dataloader_drop_last:
        yield "dataloader_drop_last has no effect: a stream has no last batch."
    if training.passed_through.use_liger_kernel:
        yield "use_liger_kernel: Liger's layers are used; its loss is not, as this project makes its own in chunks."
    if training.torch_compile and not (training.packing or training.tokens_per_batch):
        yield "torch_compile: without packing or tokens_per_batch, batches differ in size and are compiled for again."
    if training.tokens_per_batch and training.per_device_train_batch_size != _default("per_device_train_batch_size"):
        yield "per_device_train_batch_size has no effect: tokens_per_batch says how large a micro-batch is."
    if training.checkpoint_every_n_layers != 1 and not training.gradient_checkpointing:
        yield "checkpoint_every_n_layers has no effect: gradient_checkpointing is false."
    if data.on_bad_rows == "error" and data.max_bad_row_share != _default("max_bad_row_share"):
        yield "max_bad_row_share has no effect: on_bad_rows: error stops at any bad row."
    if training.passed_through.gradient_checkpointing_kwargs and not training.gradient_checkpointing:
        yield "gradient_checkpointing_kwargs has no effect: gradient_checkpointing is false."


def _check_model(config: SFTConfig) -> Iterator[Contradiction]:
    model, quantization = config.model, config.quantization
    for key in ("model_name_or_path", "tokenizer_name_or_path"):
        name = getattr(model, key)
        if name and _looks_like_a_path(name) and not os.path.exists(name):
            yield Contradiction(key, f"there is no folder {name!r} (seen from {os.getcwd()}).")
    folder = model.model_name_or_path
    if model.gguf_file and os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, model.gguf_file)):
        found = sorted(path.name for path in Path(folder).glob("*.gguf"))
        yield Contradiction("gguf_file", f"no {model.gguf_file!r} in {model.model_name_or_path}; there: {found}.")
    if model.gguf_file and quantization:
        yield Contradiction("gguf_file", "its weights are de-quantized when read; leave out quantization_config.")
    if model.dtype == "float16" and config.lora is None:
        yield Contradiction(
            "dtype", "weights in float16 cannot be trained; write auto, or add lora_config to train adapters only."
        )
    if config.lora and not config.lora.target_modules:
        yield Contradiction("lora_config.target_modules", "names no layer; list some, or write all-linear.")
    if quantization is None:
        return
    if quantization.load_in_4bit and quantization.load_in_8bit:
        yield Contradiction("quantization_config.load_in_8bit", "4 bits and 8 bits exclude each other; choose one.")
    if not (quantization.load_in_4bit or quantization.load_in_8bit):
        yield Contradiction("quantization_config", "says neither load_in_4bit nor load_in_8bit; set one to true.")
    elif config.lora is None:
        yield Contradiction(
            "quantization_config", "quantized weights cannot be trained themselves; add a lora_config section."
        )


def _check_data(config: SFTConfig) -> Iterator[Contradiction]:
    data = config.data
    if data.dataset_name and data.train_file:
        yield Contradiction("train_file", "dataset_name already names the training data; choose one.")
    if data.dataset_name and data.dataset_path:
        yield Contradiction("dataset_path", "dataset_name already names the training data; choose one.")
    if not (data.datasets or data.dataset_name or data.train_file or data.dataset_path):
        yield Contradiction("train_file", "no training data: give train_file, dataset_path, dataset_name or datasets.")
    if data.dataset_config_name and not data.dataset_name:
        yield Contradiction("dataset_config_name", "belongs to dataset_name, which is not given.")
    if data.validation_file and data.validation_split:
        yield Contradiction("validation_split", "validation_file already gives validation data; choose one.")
    if data.dataset_path and not os.path.exists(data.dataset_path):
        yield Contradiction("dataset_path", f"there is no {data.dataset_path!r} (seen from {os.getcwd()}).")
        return
    for key in ("train_file", "validation_file"):
        name = getattr(data, key)
        if name is not None:
            yield from _check_data_file(key, name, data.dataset_path)


def _check_datasets(config: SFTConfig) -> Iterator[Contradiction]:
    data = config.data
    if not data.datasets:
        return
    for key in ("train_file", "dataset_path", "dataset_name"):
        if getattr(data, key):
            yield Contradiction(key, "datasets already names the training data; choose one.")
    if data.dataset_columns:
        yield Contradiction("dataset_columns", "with datasets, each entry has its own; write it there, as columns.")
    for number, source in enumerate(data.datasets):
        yield from _check_source(f"datasets[{number}]", source)


def _check_source(key: str, source: DatasetSource) -> Iterator[Contradiction]:
    """One entry of `datasets`, which stands at `key`."""
    if source.path and source.name:
        yield Contradiction(key, "path and name both say where its rows come from; choose one.")
    if not source.path and not source.name:
        yield Contradiction(key, "does not say where its rows come from; give path or name.")
    if source.config and not source.name:
        yield Contradiction(f"{key}.config", "belongs to name, which is not given.")
    if source.path:
        could_be_a_name = re.fullmatch(r"[\w-]+/[\w-]+", source.path)
        otherwise = " A dataset on the Hugging Face Hub is given by name." if could_be_a_name else ""
        yield from _check_data_file(f"{key}.path", source.path, None, otherwise)
    if source.format is not None and source.format not in RECORD_FORMATS:
        hint = did_you_mean(source.format, RECORD_FORMATS) or f" Allowed: {', '.join(RECORD_FORMATS)}."
        yield Contradiction(f"{key}.format", f"{source.format!r} is unknown.{hint}")


def _check_streaming(config: SFTConfig) -> Iterator[Contradiction]:
    data = config.data
    if not data.streaming:
        return
    if config.training.max_steps < 1:
        yield Contradiction("streaming", "needs max_steps: how many rows there are is not known beforehand.")
    if data.validation_split:
        yield Contradiction(
            "validation_split", "streaming keeps no rows that could be set aside; give validation_file instead."
        )
    if config.training.passed_through.train_sampling_strategy == "group_by_length":
        yield Contradiction(
            "train_sampling_strategy", "group_by_length needs all lengths beforehand, streaming has none; choose one."
        )
    if config.training.passed_through.train_sampling_strategy == "sequential":
        yield Contradiction("train_sampling_strategy", "of a stream is given by shuffle_block_rows; 1 is sequential.")
    for number, source in enumerate(data.datasets):
        if source.weight != 1:
            yield Contradiction(
                f"datasets[{number}].weight", "streaming reads each source once, in order; leave weight out."
            )


def _check_data_file(key: str, name: str, folder: str | None, otherwise: str = "") -> Iterator[Contradiction]:
    """Whether a file, folder or glob is there; `otherwise` is said where no name beside it comes near."""
    place = Path(folder or ".") / name
    if any(character in name for character in "*?["):
        base = Path("/") if place.is_absolute() else Path(".")
        pattern = str(place.relative_to("/")) if place.is_absolute() else str(place)
        try:
            matches = any(True for _ in base.glob(pattern))
        except ValueError as error:
            yield Contradiction(key, f"{name!r} is no pattern of file names: {error}.")
            return
        if not matches:
            yield Contradiction(key, f"no file matches {str(place)!r} (seen from {os.getcwd()}).")
    elif not os.path.exists(place):
        readable = os.path.isdir(place.parent) and os.access(place.parent, os.R_OK)
        siblings = os.listdir(place.parent) if readable else []
        hint = did_you_mean(place.name, siblings) or otherwise
        yield Contradiction(key, f"there is no {str(place)!r} (seen from {os.getcwd()}).{hint}")


def _check_training(config: SFTConfig) -> Iterator[Contradiction]:
    training = config.training
    if training.fp16 is True and training.bf16 is True:
        yield Contradiction("bf16", "fp16 and bf16 exclude each other; choose one.")
    if training.warmup_steps and training.warmup_ratio:
        yield Contradiction("warmup_ratio", "warmup_steps and warmup_ratio say the same thing; choose one.")
    for key, allowed in (("optim", optimizer_names()), ("lr_scheduler_type", scheduler_names())):
        value = getattr(training, key)
        if allowed and value not in allowed:
            hint = did_you_mean(value, allowed) or f" Allowed: {', '.join(allowed)}."
            yield Contradiction(key, f"{value!r} is unknown.{hint}")
    if os.path.exists(training.output_dir) and not os.path.isdir(training.output_dir):
        yield Contradiction("output_dir", f"{training.output_dir!r} is a file; name a folder.")
    resume = training.resume_from_checkpoint
    if isinstance(resume, str) and resume != "auto" and not os.path.isdir(resume):
        yield Contradiction(
            "resume_from_checkpoint", f"there is no folder {resume!r}; name a checkpoint, or write auto."
        )


def _check_speed(config: SFTConfig) -> Iterator[Contradiction]:
    data, training = config.data, config.training
    kwargs = training.passed_through.gradient_checkpointing_kwargs
    if training.checkpoint_every_n_layers != 1 and "every_n_layers" in kwargs:
        yield Contradiction("checkpoint_every_n_layers", "gradient_checkpointing_kwargs says it too; choose one.")
    if training.packing and training.tokens_per_batch:
        yield Contradiction("tokens_per_batch", "packs are sized by max_seq_length with packing; choose one.")
    if training.tokens_per_batch and training.tokens_per_batch < data.max_seq_length:
        yield Contradiction(
            "tokens_per_batch",
            f"is {training.tokens_per_batch}, less than a row may have (max_seq_length {data.max_seq_length}).",
        )
    for key in ("packing", "tokens_per_batch"):
        if not getattr(training, key):
            continue
        if data.streaming:
            yield Contradiction(key, "needs the lengths of all rows beforehand, streaming has none; choose one.")
        if training.padding_free is False:
            yield Contradiction(key, "lays rows end to end, which padding_free: false forbids; choose one.")
        if training.passed_through.train_sampling_strategy == "group_by_length":
            yield Contradiction(key, "makes batches of like size itself; leave train_sampling_strategy out.")


def _check_passed_through(config: SFTConfig) -> Iterator[Contradiction]:
    """What transformers would refuse only after it is loaded."""
    passed = config.training.passed_through
    sampling = passed.train_sampling_strategy
    if sampling not in SAMPLING_STRATEGIES:
        choices = " | ".join(SAMPLING_STRATEGIES)
        yield Contradiction("train_sampling_strategy", f"{sampling!r} is unknown; choose {choices}.")
    for key in ("torch_compile_backend", "torch_compile_mode"):
        if getattr(passed, key) is not None and not config.training.torch_compile:
            yield Contradiction(key, "belongs to torch_compile, which is false; add torch_compile: true.")
    metric = passed.metric_for_best_model
    if metric is not None and str(metric).removeprefix("eval_") not in EVALUATION_METRICS:
        choices = " | ".join(EVALUATION_METRICS)
        yield Contradiction("metric_for_best_model", f"{metric!r} is unknown; choose {choices}.")
    if passed.dataloader_prefetch_factor is not None and config.training.dataloader_num_workers in (0, "auto"):
        yield Contradiction("dataloader_prefetch_factor", "needs dataloader_num_workers above 0.")
    cache_steps = passed.torch_empty_cache_steps
    if cache_steps is not None and cache_steps < 1:
        yield Contradiction("torch_empty_cache_steps", f"is {cache_steps}; give a whole number from 1 up, or null.")


def _check_evaluation_schedule(config: SFTConfig) -> Iterator[Contradiction]:
    training, data = config.training, config.data
    passed = training.passed_through
    # A named dataset or a folder may bring a validation split of its own: seen only when it is read.
    folders = [os.path.join(data.dataset_path or "", data.train_file or ""), *(entry.path for entry in data.datasets)]
    names = [data.dataset_name, *(entry.name for entry in data.datasets)]
    may_have_validation = bool(
        data.validation_file
        or data.validation_split
        or any(names)
        or any(folder and os.path.isdir(folder) for folder in folders)
    )
    follows_validation = {
        "load_best_model_at_end": training.load_best_model_at_end,
        "save_strategy": passed.saves_best,
        "lr_scheduler_type": training.lr_scheduler_type in NEED_VALIDATION,
    }
    needs_validation = {
        **follows_validation,
        "eval_steps": training.eval_steps is not None,
        "eval_strategy": passed.asks_for_evaluation,
    }
    for key in (key for key, is_so in needs_validation.items() if is_so and not may_have_validation):
        yield Contradiction(key, "needs validation data; give validation_file or validation_split.")
    for key in (key for key, is_so in follows_validation.items() if is_so and passed.eval_strategy == "no"):
        yield Contradiction(key, "needs evaluation, which eval_strategy: no switches off; choose one.")
    for key, steps, strategy in (
        ("eval_steps", training.eval_steps, passed.eval_strategy),
        ("save_steps", training.save_steps, passed.save_strategy),
    ):
        if steps is not None and strategy not in (None, "steps"):
            yield Contradiction(key, f"{key[:4]}_strategy: {strategy} leaves no room for it; choose one.")
        if steps is None and strategy == "steps":
            yield Contradiction(f"{key[:4]}_strategy", f"steps needs {key}; add it.")
    if training.load_best_model_at_end:
        yield from _check_best_model_schedule(training.eval_steps, training.save_steps, passed)


def _check_best_model_schedule(
    eval_steps: float | None, save_steps: float | None, passed: PassedThrough
) -> Iterator[Contradiction]:
    """A model can be kept as the best only where it is both evaluated and saved."""
    if passed.saves_best:
        return
    if passed.save_strategy == "no":
        yield Contradiction("load_best_model_at_end", "needs checkpoints, which save_strategy: no switches off.")
        return
    if (eval_steps is None) != (save_steps is None):
        yield Contradiction(
            "load_best_model_at_end",
            f"evaluation and saving must fall on the same steps: eval_steps is {eval_steps}, save_steps is "
            f"{save_steps}; give both or neither.",
        )
    elif eval_steps is not None:
        same_kind = isinstance(eval_steps, int) == isinstance(save_steps, int)
        if not same_kind or abs(save_steps / eval_steps - round(save_steps / eval_steps)) > 1e-9:
            yield Contradiction(
                "save_steps", f"must be a multiple of eval_steps ({eval_steps}) for load_best_model_at_end."
            )


def _check_logging(config: SFTConfig) -> Iterator[Contradiction]:
    for name in config.logging.report_to:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS) or f" Allowed: none, {', '.join(TRACKERS)}."
            yield Contradiction("report_to", f"{name!r} is unknown.{hint}")
        elif not any(importlib.util.find_spec(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0]
            yield Contradiction(
                "report_to",
                f"{name} needs the package {package}: pip install {package}, or leave it out (none: no tracker).",
            )


def _default(key: str) -> Any:
    return flat_keys()[key].default


def _looks_like_a_path(name: str) -> bool:
    """Whether a model's name can only be meant as a place on disk: a Hub name is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
