"""The batch plan: rows a step, steps an epoch, steps in all."""

from __future__ import annotations

import math

import numpy as np

from sft.batching.packing import plan_packs
from sft.common.run_records import BatchPlan, DistributedContext
from sft.configuration.schema import TrainingConfig


def resolve_batch_plan(
    config: TrainingConfig,
    num_rows: int | None,
    context: DistributedContext,
    *,
    lengths: np.ndarray | None = None,
    longest: int = 0,
) -> BatchPlan:
    """Sizes and steps of a run; the arithmetic of the sampler and the Trainer.

    Args:
        config: the training section; what it leaves to a trial is settled by now.
        num_rows: rows an epoch; None for a stream, whose only end is `max_steps`.
        context: the processes that share a step.
        lengths: tokens of each row, which packs need.
        longest: `max_seq_length`, the capacity of a pack where no `tokens_per_batch` is set.
    """
    packs = None
    if config.tokens_per_batch is not None or config.packing:
        packs = plan_packs(lengths, config.tokens_per_batch or longest)
        num_rows = packs.num_packs
    # A pack of `tokens_per_batch` is a micro-batch of its own.
    micro_batch_size = 1 if config.tokens_per_batch is not None else config.per_device_train_batch_size
    if num_rows is None:
        steps_per_epoch = total = config.max_steps
    else:
        rows_together = micro_batch_size * context.world_size
        drop_last = config.passed_through.dataloader_drop_last
        micro_batches = num_rows // rows_together if drop_last else math.ceil(num_rows / rows_together)
        steps_per_epoch = max(math.ceil(micro_batches / config.gradient_accumulation_steps), 1)
        total = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch)
    return BatchPlan(
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=context.world_size,
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        packs=packs,
        per_device_eval_batch_size=config.per_device_eval_batch_size,
    )
