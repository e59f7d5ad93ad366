"""The settings as transformers' `TrainingArguments`: the only module that builds them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from sft.common.errors import ConfigError, one_line
from sft.common.run_records import DistributedContext
from sft.configuration.installed_transformers import BFLOAT16_OPTIMIZERS
from sft.configuration.schema import LoggingConfig, TrainingConfig
from sft.processes.environment import set_tensorboard_folder, set_wandb_environment
from sft.processes.process_group import process_group_backend
from sft.training.run_setup import RunSetup

logger = logging.getLogger("sft.train")
_TRIAL_STEPS = 10
"""Steps of the schedule that is tried before training."""
_HANDLED_HERE = (
    "torch_compile_backend",
    "torch_compile_mode",
    "gradient_checkpointing_kwargs",
    "push_to_hub",
    "hub_token",
    "neftune_noise_alpha",
)
"""Fields that do not reach `TrainingArguments`: Trainer would compile the model as a whole (see `compile_options`),
push checkpoints that are not published yet (see `hub_pushes`), and scale noise by the batch (see `embedding_noise`)."""


def build_training_arguments(setup: RunSetup, context: DistributedContext) -> TrainingArguments:
    """The settings as the installed transformers' `TrainingArguments`. Built once, after the batch plan.

    Args:
        setup: the run.
        context: this process; a dry run is one process, however many are planned.

    Raises:
        ConfigError: if settings contradict each other on this machine.
    """
    config, logging_config, plan = setup.config.training, setup.config.logging, setup.plan
    mixed = setup.prepared.precision.mixed
    extra = _extra_arguments(config)
    values = {
        **_optimization(config),
        "max_steps": plan.total_steps if plan.stopped_early else config.max_steps,
        **_evaluation_and_saving(config, extra, has_validation=setup.data.validation is not None),
        "output_dir": config.output_dir,
        "per_device_train_batch_size": plan.per_device_train_batch_size,
        "per_device_eval_batch_size": plan.per_device_eval_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "bf16": mixed == "bf16",
        "fp16": mixed == "fp16",
        "dataloader_num_workers": _num_loader_workers(config, context),
        "dataloader_pin_memory": extra.pop("dataloader_pin_memory", context.device.startswith("cuda")),
        # A stream itself starts after the checkpoint: nothing is to be skipped.
        "ignore_data_skip": extra.pop("ignore_data_skip", False) or setup.data.stream is not None,
        "logging_steps": logging_config.logging_steps,
        "report_to": logging_config.report_to,
        "run_name": logging_config.run_name,
        "use_cpu": extra.pop("use_cpu", context.device == "cpu"),
        "ddp_backend": process_group_backend(),
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "log_level": "error",
        "log_level_replica": "error",
    }
    with one_line_errors():
        arguments = TrainingArguments(**values, **extra)
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # further GPUs could not be hidden; Trainer would wrap the model in DataParallel
    check_schedule(arguments)
    _prepare_trackers(config, logging_config, setup.identity.wandb_run_id)
    return arguments


def _optimization(config: TrainingConfig) -> dict[str, Any]:
    return {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "num_train_epochs": config.num_train_epochs,
        # A value below 1 is a share of all steps.
        "warmup_steps": config.warmup_steps or config.warmup_ratio,
        "lr_scheduler_type": config.lr_scheduler_type,
        "max_grad_norm": config.max_grad_norm,
        # Ours is handed to Trainer as a class.
        "optim": "adamw_torch" if config.optim in BFLOAT16_OPTIMIZERS else config.optim,
        "seed": config.seed,
    }


def _evaluation_and_saving(config: TrainingConfig, extra: dict[str, Any], *, has_validation: bool) -> dict[str, Any]:
    """When to evaluate and to save; the fields concerned are taken out of `extra`."""
    eval_strategy = extra.pop("eval_strategy", "epoch" if config.eval_steps is None else "steps")
    return {
        "eval_strategy": eval_strategy if has_validation else "no",
        "eval_steps": config.eval_steps,
        "save_strategy": extra.pop("save_strategy", "epoch" if config.save_steps is None else "steps"),
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "load_best_model_at_end": config.load_best_model_at_end,
    }


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns transformers' errors about settings (a missing package, for example) into one line.

    Raises:
        ConfigError: in place of the library's error.
    """
    try:
        yield
    except (ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(one_line(error)) from error


GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Values of `torch_compile_mode` that capture CUDA graphs."""


def compile_options(config: TrainingConfig) -> dict[str, Any]:
    """Options of `torch.compile` for the layers.

    Raises:
        ConfigError: if CUDA graphs are asked for where this torch overwrites what checkpointed layers recompute.
    """
    passed = config.passed_through
    if replays_graphs(config) and config.gradient_checkpointing and torch.__version__ < "2.13":
        raise ConfigError(
            f"torch_compile_mode: {passed.torch_compile_mode} captures CUDA graphs, which torch {torch.__version__} "
            "cannot combine with gradient_checkpointing. Install torch 2.13, or remove one of them."
        )
    given = {"backend": passed.torch_compile_backend, "mode": passed.torch_compile_mode}
    return {option: value for option, value in given.items() if value is not None}


def replays_graphs(config: TrainingConfig) -> bool:
    """Whether compiled layers are CUDA graphs."""
    return config.torch_compile is not False and config.passed_through.torch_compile_mode in GRAPH_MODES


def checkpointing_options(config: TrainingConfig) -> dict[str, Any] | None:
    """Options of gradient checkpointing; None where it is off."""
    if not config.gradient_checkpointing:
        return None
    return {
        "use_reentrant": False,
        "every_n_layers": config.checkpoint_every_n_layers,
        **config.passed_through.gradient_checkpointing_kwargs,
    }


def _num_loader_workers(config: TrainingConfig, context: DistributedContext) -> int:
    if config.dataloader_num_workers == "auto":
        return 2 if context.device.startswith("cuda") else 0
    return config.dataloader_num_workers


def check_schedule(arguments: TrainingArguments) -> None:
    """Computes a short schedule once, for a dummy optimizer, so that unknown options are an error before training.

    Raises:
        ConfigError: naming `lr_scheduler_kwargs`.
    """
    if arguments.lr_scheduler_type == "greedy":
        return
    try:
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1)], lr=1.0),
            num_warmup_steps=1,
            num_training_steps=_TRIAL_STEPS,
            # TrainingArguments has read the JSON of a string.
            scheduler_specific_kwargs=cast("dict[str, Any] | None", arguments.lr_scheduler_kwargs),
        )
        if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):  # warm-up does not read all options
            for step in range(_TRIAL_STEPS + 1):
                float(schedule.lr_lambdas[0](step))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"lr_scheduler_kwargs: {arguments.lr_scheduler_kwargs} does not fit lr_scheduler_type "
            f"{SchedulerType(arguments.lr_scheduler_type).value}: {one_line(error)}"
        ) from None


def _extra_arguments(config: TrainingConfig) -> dict[str, Any]:
    """The passed-through fields, and those that settings of ours translate to."""
    extra = dict(config.extra_training_arguments)
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    # transformers 5.23 renamed it; earlier versions only know the old name.
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    for key in _HANDLED_HERE:
        extra.pop(key, None)
    if config.gradient_checkpointing:
        extra |= {checkpointing: True, f"{checkpointing}_kwargs": checkpointing_options(config)}
    passed = config.passed_through
    follows_metric = config.load_best_model_at_end or passed.saves_best or config.early_stopping_patience is not None
    if follows_metric or "metric_for_best_model" in extra:
        metric = extra["metric_for_best_model"] = passed.metric_for_best_model or "eval_loss"
        extra.setdefault("greater_is_better", not metric.endswith(("loss", "loss_unweighted", "perplexity")))
    return extra


def _prepare_trackers(config: TrainingConfig, logging_config: LoggingConfig, run_id: str) -> None:
    """Creates the trackers' folders and sets the environment variables that transformers' trackers read.

    Raises:
        ConfigError: if TensorBoard's folder cannot be created.
    """
    logging_dir = logging_config.logging_dir or str(Path(config.output_dir, "logs"))
    set_tensorboard_folder(logging_dir)
    if "tensorboard" in logging_config.report_to:
        try:
            Path(logging_dir).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"logging_dir: {logging_dir} cannot be created: {error.strerror}.") from None
    if "wandb" in logging_config.report_to:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        if set_wandb_environment(config.output_dir, run_id, logging_config.wandb_project):
            logger.info(
                "wandb: no API key, so the run is recorded offline in %s/wandb (`wandb sync` uploads it).",
                config.output_dir,
            )
