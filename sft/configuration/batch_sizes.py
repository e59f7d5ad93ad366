"""Micro-batch size, gradient accumulation and global batch size, which determine each other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from sft.common.errors import ConfigError
from sft.configuration.schema import TrainingConfig

AUTO = "auto"


def with_auto_sizes(training: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """Set the batch sizes that `auto_batch_size`, or `global_batch_size` alone, leave to a trial to `auto`.

    Args:
        training: section as read.
        given: names of the keys that were given.
    """
    needs_trial = training.auto_batch_size or (training.global_batch_size and not training.tokens_per_batch)
    if needs_trial and "per_device_train_batch_size" not in given:
        training = replace(training, per_device_train_batch_size="auto")
    if training.auto_batch_size and "per_device_eval_batch_size" not in given:
        training = replace(training, per_device_eval_batch_size="auto")
    return training


def with_accumulation(training: TrainingConfig, world_size: int) -> TrainingConfig:
    """Set the gradient accumulation that `global_batch_size` requires, if the micro-batch size is known.

    Raises:
        ConfigError: if `global_batch_size` is not a multiple of the rows that all processes handle at once.
    """
    rows, size = training.global_batch_size, training.per_device_train_batch_size
    if rows is None:
        return training
    # A micro-batch of `tokens_per_batch` is one pack.
    per_device = 1 if training.tokens_per_batch or isinstance(size, str) else size
    together = world_size * per_device
    if rows % together:
        factor = "" if per_device == 1 else f"per_device_train_batch_size {per_device} x "
        nearest = sorted({max(rows // together, 1) * together, (rows // together + 1) * together})
        raise ConfigError(
            f"global_batch_size: {rows} is not a multiple of {factor}{world_size} processes; "
            f"use {' or '.join(map(str, nearest))}, or change the batch size or the number of processes."
        )
    is_known = training.tokens_per_batch is not None or size != AUTO
    return replace(training, gradient_accumulation_steps=rows // together) if is_known else training
