"""Agreement between processes: the process group, smallest values, shared problems."""

from __future__ import annotations

from typing import Any

from sft.common.run_records import DistributedContext


def agree_on_smallest(number: int, context: DistributedContext) -> int:
    """The smallest of the numbers that the processes have; the process group must be open."""
    if context.world_size == 1:
        return number
    import torch

    device = context.device if torch.distributed.get_backend() == "nccl" else "cpu"
    smallest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(smallest, op=torch.distributed.ReduceOp.MIN)
    return int(smallest)


def open_talk(context: DistributedContext) -> Any:
    """A group of all processes that talk through main memory, whatever the others' backend; None for one process.

    All processes must call it.
    """
    if context.world_size == 1:
        return None
    import torch

    return torch.distributed.new_group(backend="gloo")


def wait_for_all(problem: str | None, context: DistributedContext, group: Any) -> str | None:
    """Waits until every process is here, and tells each of them the first problem that any of them has.

    Args:
        problem: of this process; None if it has none.
        context: this process.
        group: of `open_talk`.
    """
    if group is None:
        return problem
    import torch

    found: list[str | None] = [None] * context.world_size
    torch.distributed.all_gather_object(found, problem, group=group)
    return next((each for each in found if each is not None), None)
