"""The batch plan: rows a step, steps an epoch, steps in all."""

from __future__ import annotations

import math

from configuration.schema import TrainingConfig
from sft_types import BatchPlan, DistributedContext


def resolve_batch_plan(config: TrainingConfig, num_rows: int | None, context: DistributedContext) -> BatchPlan:
    """Sizes and steps of a run; the arithmetic of the sampler and the Trainer.

    Args:
        config: the training section.
        num_rows: rows an epoch; None for a stream, whose only end is `max_steps`.
        context: the processes that share a step.
    """
    if num_rows is None:
        return BatchPlan(
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            world_size=context.world_size,
            steps_per_epoch=config.max_steps,
            total_steps=config.max_steps,
        )
    rows_together = config.per_device_train_batch_size * context.world_size
    drop_last = bool(config.extra_training_arguments.get("dataloader_drop_last", False))
    micro_batches = num_rows // rows_together if drop_last else math.ceil(num_rows / rows_together)
    steps_per_epoch = max(math.ceil(micro_batches / config.gradient_accumulation_steps), 1)
    total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch)
    return BatchPlan(
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=context.world_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
    )
