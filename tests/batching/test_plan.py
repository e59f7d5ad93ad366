"""The batch plan: steps per epoch and in total."""

from __future__ import annotations

import numpy as np
import pytest

from sft.batching.plan import resolve_batch_plan
from sft.common.run_records import DistributedContext
from sft.configuration.schema import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "steps_per_epoch", "global_batch_size", "capacity"),
    [
        ({"packing": True, "per_device_train_batch_size": 2}, 3, 4, 50),
        ({"tokens_per_batch": 100}, 3, 2, 100),
        ({"tokens_per_batch": 100, "gradient_accumulation_steps": 3}, 1, 6, 100),
    ],
)
def test_resolve_batch_plan_counts_packs(settings, steps_per_epoch, global_batch_size, capacity):
    plan = resolve_batch_plan(
        TrainingConfig(**settings), 20, DistributedContext(world_size=2), lengths=np.full(20, 25), max_seq_length=50
    )
    assert (plan.steps_per_epoch, plan.global_batch_size) == (steps_per_epoch, global_batch_size)
    assert (plan.packs.capacity, plan.packs.fill, plan.unit) == (capacity, 1.0, "packs")


@pytest.mark.parametrize(
    ("settings", "rows", "world", "steps_per_epoch", "total"),
    [
        ({"per_device_train_batch_size": 4, "num_train_epochs": 2.0}, 10, 1, 3, 6),
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "num_train_epochs": 1.5}, 20, 1, 3, 5),
        ({"per_device_train_batch_size": 2, "max_steps": 7}, 10, 2, 3, 7),
        ({"per_device_train_batch_size": 64}, 10, 1, 1, 3),
    ],
)
def test_resolve_batch_plan_counts_steps(settings, rows, world, steps_per_epoch, total):
    plan = resolve_batch_plan(TrainingConfig(**settings), rows, DistributedContext(world_size=world))
    assert (plan.steps_per_epoch, plan.total_steps) == (steps_per_epoch, total)
    assert plan.global_batch_size == plan.per_device_train_batch_size * plan.gradient_accumulation_steps * world
