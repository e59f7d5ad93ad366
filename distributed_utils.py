"""The door to processes: rank and device of this one, and the process group that connects it with the others.

This module imports torch: the entry imports it once it knows that the configuration is valid.
"""

from __future__ import annotations

import logging

import torch

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import DistributedConfig
from sft.processes.device_allocator import use_expandable_segments
from sft.processes.environment import (
    has_gpu_of_its_own,
    hide_all_gpus_but_first,
    is_launched,
    is_set,
    launched_world_size,
    local_rank_of_this_process,
    num_processes_here,
    rank_of_this_process,
)
from sft.processes.process_group import open_process_group

logger = logging.getLogger("sft.distributed")


def start_distributed(
    config: DistributedConfig,
    *,
    use_cpu: bool = False,
    is_dry_run: bool = False,
    nodes: int = 1,
    timeout_seconds: int | None = None,
) -> DistributedContext:
    """Determine the rank and device of this process, and open the process group if there are several processes.

    accelerate and transformers use the open group. A group that is already open is kept.

    Args:
        config: the distributed section.
        use_cpu: stay on the CPU although there is a GPU.
        is_dry_run: this process represents all configured processes and opens no group.
        nodes: number of machines with `num_gpus` processes each, for a dry run.
        timeout_seconds: timeout of collective operations and of connecting (`ddp_timeout`); default: 1800.

    Raises:
        ConfigError: if the number of processes is not the configured one, there is no GPU for one of them, or they
            cannot connect.
    """
    world_size, local_rank = launched_world_size(), local_rank_of_this_process()
    processes_here = num_processes_here(world_size)
    if is_dry_run and not is_launched():
        return DistributedContext(world_size=(config.num_gpus or 1) * nodes, device=_select_device(0, 1, use_cpu))
    if config.num_gpus is not None and config.num_gpus != processes_here:
        raise ConfigError(
            f"num_gpus is {config.num_gpus} but {processes_here} processes were started. "
            f"Pass --gpus {config.num_gpus}, or set num_gpus: {processes_here}."
        )
    if is_set("ACCELERATE_USE_FSDP"):
        raise ConfigError(
            "accelerate's launcher requests FSDP with its own settings, which are not supported. Write fsdp: {} in the "
            "configuration, and start the run with ./launch_training.sh --gpus N or torchrun."
        )
    device = _select_device(local_rank, processes_here, use_cpu)
    if config.ddp_backend == "nccl" and device == "cpu":
        raise ConfigError("ddp_backend: nccl needs GPUs, and this run is on CPU; write gloo, or omit the key.")
    context = DistributedContext(
        rank=rank_of_this_process(), local_rank=local_rank, world_size=world_size, device=device
    )
    if world_size > 1 and not is_dry_run:
        open_process_group(context, backend=config.ddp_backend, timeout_seconds=timeout_seconds)
    return context


def _select_device(local_rank: int, processes_here: int, use_cpu: bool) -> str:
    """The device of this process; on a machine with several GPUs and one process, only the first stays visible."""
    if use_cpu:
        return "cpu"
    if not torch.cuda.is_available():
        if processes_here > 1:
            logger.info("No GPU on this machine: %d processes on CPU, connected by gloo.", processes_here)
        return "mps" if processes_here == 1 and torch.backends.mps.is_available() else "cpu"
    num_devices = torch.cuda.device_count()
    if processes_here > num_devices and has_gpu_of_its_own():
        local_rank = 0  # each task sees its own GPUs only
    elif processes_here > num_devices:
        raise ConfigError(
            f"{processes_here} processes but {num_devices} GPUs on this machine; start at most {num_devices}."
        )
    if processes_here == 1 and num_devices > 1 and not is_launched():
        # Otherwise Trainer would wrap the model in DataParallel: slower, and with another batch size.
        hide_all_gpus_but_first()
        logger.info(
            "%d GPUs on this machine, training on one. To use all: ./launch_training.sh --config FILE --gpus %d",
            num_devices,
            num_devices,
        )
    torch.cuda.set_device(local_rank)
    device = f"cuda:{local_rank}"
    use_expandable_segments(device)
    return device
