"""The settings in the installed transformers' words: the only place that speaks `TrainingArguments`."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from sft.common.errors import ConfigError, one_line
from sft.common.run_records import BatchPlan, DistributedContext, Precision
from sft.configuration.batch_sizes import AUTO
from sft.configuration.schema import LoggingConfig, TrainingConfig
from sft.processes.environment import default_wandb_to_offline

logger = logging.getLogger("sft.train")
_COMPILATION = {"torch_compile_backend": "backend", "torch_compile_mode": "mode"}
"""Fields of `TrainingArguments` -> options of `torch.compile`."""


def build_training_arguments(
    config: TrainingConfig,
    logging_config: LoggingConfig,
    precision: Precision,
    context: DistributedContext,
    *,
    has_validation: bool,
    ddp_backend: str | None = None,
) -> TrainingArguments:
    """The settings in the installed transformers' words: the only place that speaks them.

    Args:
        config, logging_config: their sections.
        precision: the types to compute in.
        context: this process.
        has_validation: whether there is something to evaluate on.
        ddp_backend: the communication library.

    Raises:
        ConfigError: if they do not go together on this machine.
    """
    extra = _extra_arguments(config)
    values = {
        **_optimization(config),
        **_evaluation_and_saving(config, extra, has_validation=has_validation),
        "output_dir": config.output_dir,
        # DeepSpeed reads them here; where they are left to a trial, `set_batch_sizes` says them later.
        "per_device_train_batch_size": _size(config.per_device_train_batch_size, config),
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "bf16": precision.mixed == "bf16",
        "fp16": precision.mixed == "fp16",
        "dataloader_num_workers": _num_loader_workers(config, context),
        "dataloader_pin_memory": extra.pop("dataloader_pin_memory", context.device.startswith("cuda")),
        "logging_steps": logging_config.logging_steps,
        "report_to": logging_config.report_to,
        "run_name": logging_config.run_name,
        "use_cpu": extra.pop("use_cpu", context.device == "cpu"),
        "ddp_backend": ddp_backend or ("gloo" if context.device == "cpu" and context.world_size > 1 else None),
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "log_level": "error",
        "log_level_replica": "error",
    }
    with one_line_errors():
        arguments = TrainingArguments(**values, **extra)
    _check_schedule(arguments)
    _set_tracker_environment(config, logging_config)
    return arguments


def _size(batch_size: int | str, config: TrainingConfig | None = None) -> int:
    """A batch size so far as it is known; a pack of `tokens_per_batch` is a micro-batch of its own."""
    if batch_size == AUTO or (config is not None and config.tokens_per_batch):
        return 1
    return batch_size


def _optimization(config: TrainingConfig) -> dict[str, Any]:
    return {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        # A number of warm-up steps below 1 is a share of all steps.
        "warmup_steps": config.warmup_steps or config.warmup_ratio,
        "lr_scheduler_type": config.lr_scheduler_type,
        "max_grad_norm": config.max_grad_norm,
        "optim": config.optim,
        "seed": config.seed,
    }


def _evaluation_and_saving(config: TrainingConfig, extra: dict[str, Any], *, has_validation: bool) -> dict[str, Any]:
    """When to evaluate and to save; what of it stands in `extra` is taken out."""
    eval_strategy = extra.pop("eval_strategy", "epoch" if config.eval_steps is None else "steps")
    return {
        "per_device_eval_batch_size": _size(config.per_device_eval_batch_size),
        "eval_strategy": eval_strategy if has_validation else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": extra.pop("save_strategy", "epoch" if config.save_steps is None else "steps"),
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "load_best_model_at_end": config.load_best_model_at_end,
    }


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what transformers says of settings that it cannot follow (a missing package, say) into one line.

    Raises:
        ConfigError: in place of the library's error.
    """
    try:
        yield
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(one_line(error)) from error


def name_tracker_run(arguments: TrainingArguments, run_id: str) -> None:
    """Lets a run that goes on be the same run in wandb: it reads the name there, unless the user set one."""
    if "wandb" in arguments.report_to:
        os.environ.setdefault("WANDB_RUN_ID", run_id)
        os.environ.setdefault("WANDB_RESUME", "allow")


def tensorboard_folder() -> str:
    """Where TensorBoard's files of this run go; known once the arguments are built."""
    return os.environ["TENSORBOARD_LOGGING_DIR"]


def trackers_take_checkpoints(arguments: TrainingArguments) -> bool:
    """Whether a tracker may send a checkpoint away as soon as Trainer has saved it."""
    takes_none = {"tensorboard"} if os.environ.get("WANDB_LOG_MODEL") == "checkpoint" else {"tensorboard", "wandb"}
    return not takes_none.issuperset(arguments.report_to)


def compile_options(config: TrainingConfig) -> dict[str, Any] | None:
    """What `torch.compile` is told of the layers; None where they are not compiled."""
    if not config.torch_compile:
        return None
    given = {option: config.extra_training_arguments.get(key) for key, option in _COMPILATION.items()}
    return {option: value for option, value in given.items() if value is not None}


def checkpointing_options(config: TrainingConfig) -> dict[str, Any] | None:
    """How activations are computed again; None where they are kept."""
    if not config.gradient_checkpointing:
        return None
    return {
        "use_reentrant": False,
        "every_n_layers": config.checkpoint_every_n_layers,
        **(config.extra_training_arguments.get("gradient_checkpointing_kwargs") or {}),
    }


def set_batch_sizes(arguments: TrainingArguments, plan: BatchPlan) -> None:
    """Puts the plan's sizes into arguments that were built before there was one."""
    arguments.per_device_train_batch_size = plan.per_device_train_batch_size
    arguments.per_device_eval_batch_size = plan.per_device_eval_batch_size
    arguments.gradient_accumulation_steps = plan.gradient_accumulation_steps


def _num_loader_workers(config: TrainingConfig, context: DistributedContext) -> int:
    if config.dataloader_num_workers == "auto":
        return 2 if context.device.startswith("cuda") else 0
    return config.dataloader_num_workers


def _check_schedule(arguments: TrainingArguments) -> None:
    """Builds the schedule once, for an optimizer of no use: settings it does not know are said before training.

    Raises:
        ConfigError: naming `lr_scheduler_kwargs`.
    """
    if arguments.lr_scheduler_type == "greedy":
        return
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler_kwargs: {arguments.lr_scheduler_kwargs} does not fit lr_scheduler_type "
            f"{arguments.lr_scheduler_type.value}: {one_line(error)}"
        ) from None


def _extra_arguments(config: TrainingConfig) -> dict[str, Any]:
    """The user's further fields, with those added that a setting of ours turns into others."""
    extra = dict(config.extra_training_arguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # transformers 5.23 renamed it; earlier ones know the old name alone.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    for key in _COMPILATION:  # or Trainer would compile the model as a whole: see `compile_options`
        extra.pop(key, None)
    extra.pop("gradient_checkpointing_kwargs", None)
    if config.gradient_checkpointing:
        extra |= {checkpointing: True, f"{checkpointing}_kwargs": checkpointing_options(config)}
    if config.load_best_model_at_end or extra.get("save_strategy") == "best" or "metric_for_best_model" in extra:
        extra["metric_for_best_model"] = extra.get("metric_for_best_model") or "eval_loss"
        lower_is_better = extra["metric_for_best_model"].endswith(("loss", "perplexity"))
        extra.setdefault("greater_is_better", not lower_is_better)
    return extra


def _set_tracker_environment(config: TrainingConfig, logging_config: LoggingConfig) -> None:
    """What transformers' trackers read from the environment."""
    logging_dir = logging_config.logging_dir or str(Path(config.output_dir, "logs"))
    os.environ["TENSORBOARD_LOGGING_DIR"] = logging_dir
    if "tensorboard" in logging_config.report_to:
        try:
            Path(logging_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"logging_dir: {logging_dir} cannot be made: {error.strerror}.") from None
    if "wandb" in logging_config.report_to:
        os.environ.setdefault("WANDB_DIR", config.output_dir)
        os.environ.setdefault("WANDB_SILENT", "true")
        if logging_config.wandb_project:
            os.environ["WANDB_PROJECT"] = logging_config.wandb_project
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        if default_wandb_to_offline():
            logger.info(
                "wandb: no key, so the run is kept offline in %s/wandb (`wandb sync` sends it).", config.output_dir
            )
