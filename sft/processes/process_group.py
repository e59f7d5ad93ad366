"""The process group: opened once per process, before anything communicates."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib import import_module

from torch import distributed

from sft.common.errors import ConfigError, one_line
from sft.common.run_records import DistributedContext

DEFAULT_TIMEOUT_SECONDS = 1800
"""transformers' default of `ddp_timeout`."""
_BACKEND_PACKAGES = {
    "ccl": "oneccl_bindings_for_pytorch",
    "hccl": "habana_frameworks.torch.distributed.hccl",
}
"""Backends that torch knows only after a package of their own was imported."""


def open_process_group(context: DistributedContext, *, backend: str | None, timeout_seconds: int | None) -> None:
    """Open the group of all processes; accelerate then uses it. A group that is already open is kept.

    Args:
        context: this process.
        backend: the communication library; None for nccl on GPUs, gloo elsewhere.
        timeout_seconds: of each collective operation and of the rendezvous; None for `DEFAULT_TIMEOUT_SECONDS`.

    Raises:
        ConfigError: if the processes cannot connect, or the backend is not installed.
    """
    if distributed.is_initialized():
        return
    backend = backend or ("nccl" if context.device.startswith("cuda") else "gloo")
    timeout = timedelta(seconds=DEFAULT_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds)
    try:
        if backend in _BACKEND_PACKAGES:
            import_module(_BACKEND_PACKAGES[backend])
        distributed.init_process_group(backend, timeout=timeout, rank=context.rank, world_size=context.world_size)
    except ImportError as error:
        raise ConfigError(f"ddp_backend: {backend} is not available here: {one_line(error)}.") from error
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '(not set)')}:{os.environ.get('MASTER_PORT', '(not set)')}"
        raise ConfigError(
            f"The {context.world_size} processes could not connect ({backend}, MASTER_ADDR:MASTER_PORT {address}, rank "
            f"{context.rank}): {one_line(error)}. Check that all of them were started and that the port is free and "
            "reachable; ./launch_training.sh and torchrun set these variables."
        ) from error


def process_group_backend() -> str | None:
    """The backend of the open group; None if no group is open."""
    return distributed.get_backend() if distributed.is_available() and distributed.is_initialized() else None


def close_process_group() -> None:
    """Close the group where one is open. To be called when all processes have finished together."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
