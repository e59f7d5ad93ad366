"""Checks of training, batch sizes, passed-through fields and trackers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import get_args

from sft.common.did_you_mean import did_you_mean
from sft.common.files import NOT_UTF8, is_utf8
from sft.common.optional_packages import is_installed, missing_package
from sft.configuration.batch_sizes import AUTO
from sft.configuration.checks.contradiction import Contradiction
from sft.configuration.coercion import describe
from sft.configuration.installed_transformers import optimizer_names, scheduler_names
from sft.configuration.keys import flat_keys
from sft.configuration.rules import NonNegativeFloat, Share, WholeShare
from sft.configuration.schema import SFTConfig

TRACKERS: dict[str, tuple[str, ...]] = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "neptune": ("neptune",),
    "dagshub": ("dagshub",),
    "codecarbon": ("codecarbon",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
}
"""Tracker -> packages, one of which it needs."""
PASSED_THROUGH_BOUNDS = {
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": NonNegativeFloat,
    "label_smoothing_factor": WholeShare,
    "neftune_noise_alpha": NonNegativeFloat,
}
"""Passed-through numbers that transformers and torch check in mid-run, or not at all."""
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")


def check_training(config: SFTConfig) -> Iterator[Contradiction]:
    """Check precision, warm-up, optimizer, schedule and folders."""
    training = config.training
    if training.fp16 is True and training.bf16 is True:
        yield Contradiction("bf16", "fp16 and bf16 are mutually exclusive; choose one.")
    if training.warmup_steps and training.warmup_ratio:
        yield Contradiction("warmup_ratio", "conflicts with warmup_steps; choose one.")
    for key, allowed in (("optim", optimizer_names()), ("lr_scheduler_type", scheduler_names())):
        value = getattr(training, key)
        if allowed and value not in allowed:
            usual = str(flat_keys()[key].default)  # adam, AdamW: adamw_torch
            similar = did_you_mean(usual, [usual]) if usual.startswith(value.lower() or "?") else ""
            hint = similar or did_you_mean(value, allowed) or f" Allowed: {', '.join(allowed)}."
            yield Contradiction(key, f"unknown value {value!r}.{hint}")
    if os.path.exists(training.output_dir) and not os.path.isdir(training.output_dir):
        yield Contradiction("output_dir", f"{training.output_dir!r} is a file; give a folder.")
    for key in ("model_name_or_path", "tokenizer_name_or_path"):
        source = getattr(config.model, key)
        if source and os.path.isdir(source) and os.path.realpath(source) == os.path.realpath(training.output_dir):
            yield Contradiction("output_dir", f"is the folder of {key}, which would be overwritten; give another.")
    resume = training.resume_from_checkpoint
    for key in ("output_dir", "resume_from_checkpoint"):
        if not is_utf8(str(getattr(training, key))):
            yield Contradiction(key, NOT_UTF8.format(path=getattr(training, key)))
    if isinstance(resume, str) and resume != "auto" and not os.path.isdir(resume):
        yield Contradiction(
            "resume_from_checkpoint", f"no such folder: {resume!r}; give a checkpoint folder, or use auto."
        )
    kwargs = training.passed_through.gradient_checkpointing_kwargs
    if training.checkpoint_every_n_layers != 1 and "every_n_layers" in kwargs:
        yield Contradiction(
            "checkpoint_every_n_layers", "conflicts with every_n_layers in gradient_checkpointing_kwargs; choose one."
        )


def check_batch_sizes(config: SFTConfig) -> Iterator[Contradiction]:
    """Check the ways to set a batch size, of which only some can be combined."""
    data, training = config.data, config.training
    if training.auto_batch_size and training.per_device_train_batch_size != AUTO:
        yield Contradiction("per_device_train_batch_size", "is set by auto_batch_size; choose one.")
    if training.global_batch_size and training.gradient_accumulation_steps != 1:
        yield Contradiction("gradient_accumulation_steps", "is set by global_batch_size; choose one.")
    if training.tokens_per_batch and training.per_device_train_batch_size == AUTO:
        yield Contradiction("tokens_per_batch", "conflicts with per_device_train_batch_size: auto; choose one.")
    if training.packing and training.tokens_per_batch:
        yield Contradiction(
            "tokens_per_batch", "cannot be combined with packing, whose packs hold max_seq_length tokens; choose one."
        )
    if training.tokens_per_batch and training.tokens_per_batch < data.max_seq_length:
        yield Contradiction(
            "tokens_per_batch",
            f"must be at least max_seq_length ({data.max_seq_length}), but is {training.tokens_per_batch}.",
        )
    for key in ("packing", "tokens_per_batch"):
        if not getattr(training, key):
            continue
        if data.streaming:
            yield Contradiction(
                key, "cannot be combined with streaming, because row lengths are not known in advance; choose one."
            )
        if training.padding_free is False:
            yield Contradiction(key, "requires padding-free micro-batches, but padding_free is false; choose one.")
        if training.passed_through.train_sampling_strategy == "group_by_length":
            yield Contradiction(key, "cannot be combined with train_sampling_strategy: group_by_length; choose one.")
        if data.order == "by_length":
            yield Contradiction(key, "cannot be combined with order: by_length; choose one.")


def check_passed_through(config: SFTConfig) -> Iterator[Contradiction]:
    """Check what transformers would reject only after it is loaded."""
    passed = config.training.passed_through
    sampling = passed.train_sampling_strategy
    if config.data.order is not None and "train_sampling_strategy" in passed.fields:
        yield Contradiction("order", "conflicts with train_sampling_strategy, which sets the order too; choose one.")
    if sampling not in SAMPLING_STRATEGIES:
        choices = " | ".join(SAMPLING_STRATEGIES)
        yield Contradiction("train_sampling_strategy", f"unknown value {sampling!r}; choose {choices}.")
    for key in ("torch_compile_backend", "torch_compile_mode"):
        if getattr(passed, key) is not None and not config.training.torch_compile:
            yield Contradiction(key, "requires torch_compile: true or auto.")
    if passed.dataloader_prefetch_factor is not None and config.training.dataloader_num_workers in (0, AUTO):
        yield Contradiction("dataloader_prefetch_factor", "requires dataloader_num_workers above 0.")
    cache_steps = passed.torch_empty_cache_steps
    if cache_steps is not None and cache_steps < 1:
        yield Contradiction("torch_empty_cache_steps", f"must be a positive integer or null, but is {cache_steps}.")
    for key, bounded in PASSED_THROUGH_BOUNDS.items():
        value = passed.fields.get(key)
        if value is not None and not get_args(bounded)[1].allows(value):
            yield Contradiction(key, f"{value} is out of range; expected {describe(bounded)}.")
    options = passed.fields.get("optim_args")
    if options and not all(option.count("=") == 1 for option in options.replace(" ", "").split(",")):
        yield Contradiction("optim_args", f"expected name=value, name=value, found {options!r}.")


def check_logging(config: SFTConfig) -> Iterator[Contradiction]:
    """Check that the trackers are known and installed."""
    for name in config.logging.report_to:
        if name not in TRACKERS:
            hint = did_you_mean(name, TRACKERS) or f" Allowed: none, {', '.join(TRACKERS)}."
            yield Contradiction("report_to", f"unknown tracker {name!r}.{hint}")
        elif not any(is_installed(package) for package in TRACKERS[name]):
            package = TRACKERS[name][0]
            yield Contradiction(
                "report_to",
                f"{name} {missing_package(package)}, or remove {name} from the list.",
            )
