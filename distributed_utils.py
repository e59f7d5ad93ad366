"""Processes: who we are among them, starting several, quiet libraries, one log.

Neither torch nor transformers is imported at module level: the entry needs this module before it knows whether the
configuration is sound.
"""

from __future__ import annotations

import logging
import os

from sft.common.errors import ConfigError
from sft.common.run_records import DistributedContext
from sft.configuration.schema import DistributedConfig
from sft.processes.environment import is_launched, is_set, num_processes_here, rank_of_this_process

logger = logging.getLogger("sft.distributed")


def start_distributed(
    config: DistributedConfig, *, use_cpu: bool = False, is_rehearsal: bool = False, nodes: int = 1
) -> DistributedContext:
    """Finds this process's place and device.

    The process group itself is opened by accelerate when the training arguments are built.

    Args:
        config: the distributed section.
        use_cpu: stay on the CPU although there is a GPU.
        is_rehearsal: one process stands for all that the configuration asks for; it talks to none.
        nodes: machines with so many processes each, for a rehearsal.

    Raises:
        ConfigError: if the processes started are not those that the configuration asks for, or there is no GPU for
            one of them.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    processes_here = num_processes_here(world_size)
    if is_rehearsal and not is_launched():
        return DistributedContext(world_size=(config.num_gpus or 1) * nodes, device=_device_of(0, 1, use_cpu))
    if config.num_gpus is not None and config.num_gpus != processes_here:
        raise ConfigError(
            f"num_gpus is {config.num_gpus} but {processes_here} processes were started. "
            f"Pass --gpus {config.num_gpus}, or set num_gpus: {processes_here}."
        )
    if is_set("ACCELERATE_USE_FSDP"):
        raise ConfigError(
            "accelerate's launcher asks for FSDP by settings of its own. Write fsdp: {} into the configuration, and "
            "start it by ./launch_training.sh --gpus N or torchrun."
        )
    device = _device_of(local_rank, processes_here, use_cpu)
    if config.ddp_backend == "nccl" and device == "cpu":
        raise ConfigError("ddp_backend: nccl needs GPUs, and this run is on CPU; write gloo, or leave it out.")
    return DistributedContext(rank=rank_of_this_process(), local_rank=local_rank, world_size=world_size, device=device)


def _device_of(local_rank: int, processes_here: int, use_cpu: bool) -> str:
    import torch

    if use_cpu:
        return "cpu"
    if not torch.cuda.is_available():
        if processes_here > 1:
            logger.info("No GPU on this machine: %d processes on CPU, which talk by gloo.", processes_here)
        return "mps" if processes_here == 1 and torch.backends.mps.is_available() else "cpu"
    num_devices = torch.cuda.device_count()
    if processes_here > num_devices:
        raise ConfigError(f"{processes_here} processes but {num_devices} GPUs on this machine; start at most as many.")
    if processes_here == 1 and num_devices > 1 and not is_launched():
        # Left to itself, Trainer would wrap the model in DataParallel: slower, and another batch size.
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
        logger.info(
            "%d GPUs here, training on one. For all: ./launch_training.sh --config FILE --gpus %d",
            num_devices,
            num_devices,
        )
    torch.cuda.set_device(local_rank)
    return f"cuda:{local_rank}"
