"""Plans of 8 and 64 processes, by the first and the last of them, in a group that sends nothing (torch's `fake`)."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest
import torch
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from distributed_utils import start_distributed
from sft.configuration.schema import DistributedConfig
from sft.modeling.data_parallel import Failure, GradientSum, MicroBatchLoss
from sft.modeling.sharding import shard_weights
from tests.support import forked
from tests.support.small_models import build_model

BUCKET_BYTES = 20_000


class Collectives(TorchDispatchMode):
    """Counts collective operations by their name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation.namespace == "c10d":
            self.counts[operation.name().removeprefix("c10d::")] += 1
        return operation(*arguments, **(options or {}))


def batch():
    ids = torch.arange(8)[None]
    return {"input_ids": ids, "labels": ids}


def check_start(rank, world_size):
    """The group is open; one machine has 8 of the processes."""
    local = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank % 8, "LOCAL_WORLD_SIZE": 8}
    os.environ.update({name: str(value) for name, value in local.items()})
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    group = distributed.group.WORLD
    context = start_distributed(DistributedConfig(num_gpus=8), use_cpu=True)
    assert (context.rank, context.local_rank, context.world_size) == (rank, rank % 8, world_size)
    assert distributed.group.WORLD is group


def plan_of_ddp():
    """The buckets of a step: number of elements, number of weights, whether it is the last one."""
    model, plan = build_model("llama"), []
    gradient_sum = GradientSum(
        MicroBatchLoss(model, lambda model, batch: model(**batch).loss),
        distributed.new_group(backend="fake"),
        bucket_cap_mb=BUCKET_BYTES / 2**20,
    )
    exchange = gradient_sum._exchange
    reduce = exchange.reduce

    def noted(bucket):
        plan.append([bucket.buffer().numel(), len(bucket.parameters()), bucket.is_last()])
        return reduce(bucket)

    exchange.reduce = noted
    for _ in range(2):
        plan.clear()
        gradient_sum.begin_step(accumulates=False)
        gradient_sum.module(batch()).backward()
        assert gradient_sum.end_step(Failure.NONE) == Failure.NONE
    weights = list(model.parameters())
    assert sum(elements for elements, *_ in plan) == sum(weight.numel() for weight in weights)
    assert sum(count for _, count, _ in plan) == len(weights)
    assert [is_last for *_, is_last in plan] == [False] * (len(plan) - 1) + [True]
    assert 4 * max(elements for elements, *_ in plan) <= BUCKET_BYTES + 4 * max(weight.numel() for weight in weights)
    return plan


def check_shards(rank, world_size):
    """Each process has one part of `world_size` of each weight, the last ones less or nothing."""
    model = build_model("llama")
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    layers = shard_weights(model, "cpu", world_size, weights=torch.float32, mixed="no", reshard_after_forward=True)
    assert layers == 2
    for name, weight in model.named_parameters():
        rows = -(-shapes[name][0] // world_size)
        assert weight.shape == shapes[name]
        assert len(weight.to_local()) == max(min(rows, shapes[name][0] - rank * rows), 0)
    with Collectives() as collectives:
        model(**batch()).loss.backward()
    units = layers + 2  # the embedding, and the rest: the last norm and the head
    # Layers and the embedding are gathered again for the backward pass.
    assert collectives.counts == {"_allgather_base_": units + layers + 1, "_reduce_scatter_base_": units}
    assert all(weight.grad.to_local().shape == weight.to_local().shape for weight in model.parameters())


def check_plans(rank, world_size, path):
    torch.set_num_threads(1)
    check_start(rank, world_size)
    path.write_text(json.dumps(plan_of_ddp()))
    check_shards(rank, world_size)
    return 0


@pytest.mark.parametrize("world_size", [8, 64])
def test_the_first_and_the_last_process_have_the_same_plan(tmp_path, world_size):
    for rank in (0, world_size - 1):
        done = forked.call(tmp_path, check_plans, rank, world_size, tmp_path / f"{rank}.json")
        assert done.status == 0, done.err
    first, last = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, world_size - 1))
    assert first == last
    assert len(first) > 2
