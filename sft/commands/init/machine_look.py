"""This machine: its GPUs, or its cores, and how much memory a process may have."""

from __future__ import annotations

import torch

from sft.commands.init.facts import MachineFacts
from sft.processes.device_memory import total_memory_bytes
from sft.processes.environment import num_usable_cores


def look_at_machine() -> MachineFacts:
    """The device that a run here would take."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        memory = total_memory_bytes("cpu")
        return MachineFacts(device="cpu", name="CPU", num_gpus=0, memory_bytes=memory, cpu_count=num_usable_cores())
    memories = [total_memory_bytes(f"cuda:{number}") for number in range(count)]
    return MachineFacts(
        device="cuda",
        name=torch.cuda.get_device_name(0),
        num_gpus=count,
        memory_bytes=min(memory for memory in memories if memory is not None),
        cpu_count=num_usable_cores(),
    )
