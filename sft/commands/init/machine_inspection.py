"""Inspects this machine: its GPUs or CPU cores, and the memory available to a process."""

from __future__ import annotations

import torch

from sft.commands.init.findings import MachineInfo
from sft.processes.device_memory import total_memory_bytes
from sft.processes.environment import num_usable_cores


def inspect_machine() -> MachineInfo:
    """Return the device that a run on this machine would use."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not num_gpus:
        memory = total_memory_bytes("cpu")
        return MachineInfo(device="cpu", name="CPU", num_gpus=0, memory_bytes=memory, cpu_count=num_usable_cores())
    memories = [total_memory_bytes(f"cuda:{index}") for index in range(num_gpus)]
    return MachineInfo(
        device="cuda",
        name=torch.cuda.get_device_name(0),
        num_gpus=num_gpus,
        memory_bytes=min(memory for memory in memories if memory is not None),
        cpu_count=num_usable_cores(),
    )
