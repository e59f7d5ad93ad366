"""Agreement between the processes of a run; the process group must be open."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from sft.common.run_records import DistributedContext


def agree_on_smallest(number: int, context: DistributedContext) -> int:
    """The smallest of the processes' numbers. Every process must call it."""
    if context.world_size == 1:
        return number
    device = context.device if distributed.get_backend() == "nccl" else "cpu"
    smallest = torch.tensor(int(number), device=device)
    distributed.all_reduce(smallest, op=distributed.ReduceOp.MIN)
    return int(smallest)


def gather_values(value: Any, context: DistributedContext, group: distributed.ProcessGroup | None = None) -> list[Any]:
    """The values of all processes, by rank. Every process must call it.

    Args:
        value: of this process.
        context: this process.
        group: from `open_cpu_group`; None for the main one.
    """
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    distributed.all_gather_object(values, value, group=group)
    return values


def open_cpu_group(context: DistributedContext) -> distributed.ProcessGroup | None:
    """A second group of all processes, on gloo and CPU whatever the main backend; None for one process.

    Every process must call it.
    """
    return distributed.new_group(backend="gloo") if context.world_size > 1 else None


def agree_on_problem(
    problem: str | None, context: DistributedContext, group: distributed.ProcessGroup | None = None
) -> str | None:
    """Wait for every process, and return the problem of the lowest rank that has one. Every process must call it.

    Args:
        problem: of this process; None if it has none.
        context: this process.
        group: from `open_cpu_group`; None for the main one.
    """
    return next((each for each in gather_values(problem, context, group) if each is not None), None)
