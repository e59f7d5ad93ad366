"""Batch size, accumulation and the rows of a step: one follows from the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from sft.common.errors import ConfigError
from sft.configuration.schema import TrainingConfig

AUTO = "auto"


def with_auto_sizes(training: TrainingConfig, given: Collection[str]) -> TrainingConfig:
    """What `auto_batch_size`, and `global_batch_size` without a batch size, leave to a trial.

    Args:
        training: as read.
        given: the keys that were given, by name.
    """
    changes = {}
    wants_trial = training.auto_batch_size or (training.global_batch_size and not training.tokens_per_batch)
    if wants_trial and "per_device_train_batch_size" not in given:
        changes["per_device_train_batch_size"] = AUTO
    if training.auto_batch_size and "per_device_eval_batch_size" not in given:
        changes["per_device_eval_batch_size"] = AUTO
    return replace(training, **changes) if changes else training


def batch_size_contradictions(training: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Key and message of what does not go together."""
    if training.auto_batch_size and training.per_device_train_batch_size != AUTO:
        yield "per_device_train_batch_size", "auto_batch_size chooses it; choose one."
    if training.global_batch_size and training.gradient_accumulation_steps != 1:
        yield "gradient_accumulation_steps", "follows from global_batch_size; choose one."
    if training.tokens_per_batch and training.per_device_train_batch_size == AUTO:
        yield "tokens_per_batch", "says how large a micro-batch is, and so would auto; choose one."


def with_accumulation(training: TrainingConfig, world_size: int) -> TrainingConfig:
    """The accumulation that `global_batch_size` asks for, where the batch size is known.

    Raises:
        ConfigError: if it cannot be shared out evenly.
    """
    rows, size = training.global_batch_size, training.per_device_train_batch_size
    if rows is None:
        return training
    if training.tokens_per_batch:
        size = 1  # a pack of so many tokens is a micro-batch of its own
    together = world_size * (1 if size == AUTO else size)
    if rows % together:
        of_batch = "" if size in (AUTO, 1) else f"per_device_train_batch_size {size} x "
        nearest = sorted({max(rows // together, 1) * together, (rows // together + 1) * together})
        raise ConfigError(
            f"global_batch_size: {rows} is no multiple of {of_batch}{world_size} processes; "
            f"write {' or '.join(map(str, nearest))}, or change the other."
        )
    return training if size == AUTO else replace(training, gradient_accumulation_steps=rows // together)
