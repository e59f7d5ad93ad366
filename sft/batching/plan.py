"""The batch plan: rows per step, steps per epoch, total steps."""

from __future__ import annotations

import math
from typing import cast

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
    max_seq_length: int = 0,
    in_order: bool = False,
) -> BatchPlan:
    """Compute sizes and steps of a run, with the same arithmetic as the sampler and Trainer.

    Args:
        config: the training section, every `auto` size resolved.
        num_rows: rows per epoch; None for a stream, which ends at `max_steps` alone.
        context: the processes that share a step.
        lengths: tokens of each row; needed for packs.
        max_seq_length: the capacity of a pack where `tokens_per_batch` is not set.
        in_order: whether packs are filled in the order of the rows.
    """
    packs = None
    if config.tokens_per_batch is not None or config.packing:
        if lengths is None:
            raise ValueError("Packs cannot be planned without the lengths of the rows.")
        packs = plan_packs(lengths, config.tokens_per_batch or max_seq_length, in_order=in_order)
        num_rows = packs.num_packs
    # With `tokens_per_batch`, a pack is a micro-batch.
    micro_batch_size = 1 if config.tokens_per_batch is not None else cast(int, config.per_device_train_batch_size)
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
        per_device_eval_batch_size=cast(int, config.per_device_eval_batch_size),
    )
