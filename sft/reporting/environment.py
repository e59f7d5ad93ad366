"""The machine of a run, and the disk space that the run needs."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import torch

from sft.common.machine_records import ComputeEnvironment, Environment
from sft.common.run_records import DistributedContext, ModelFootprint
from sft.processes.device_allocator import allocator_settings
from sft.processes.device_memory import total_memory_bytes
from sft.processes.device_peaks import gpu_name
from sft.processes.environment import kernel_variables, num_processes_here, num_usable_cores
from sft.reporting.report.records import Machine
from sft.reporting.summary import installed_versions


def gather_environment(
    context: DistributedContext,
    footprint: ModelFootprint,
    *,
    output_dir: str,
    optimizer_bytes: float,
    checkpoints_kept: int | None,
    num_checkpoints: int,
) -> Environment:
    """Device, versions, free disk space and the space that checkpoints need.

    Args:
        context: this process; `world_size` processes are planned.
        footprint: size of the model. With adapters, only trainable parameters are saved.
        output_dir: of the run; it need not exist yet.
        optimizer_bytes: of the optimizer states of all processes.
        checkpoints_kept: `save_total_limit`; None keeps all.
        num_checkpoints: how many the run would write.
    """
    folder = Path(output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    has_adapters = footprint.num_trainable_parameters < footprint.num_parameters
    saved = 4 * footprint.num_trainable_parameters if has_adapters else footprint.weight_bytes
    return Environment(
        device=context.device,
        device_name=device_name(context.device),
        device_memory_bytes=total_memory_bytes(context.device),
        cpu_count=num_usable_cores(),
        num_processes=context.world_size,
        versions=installed_versions(),
        free_disk_bytes=shutil.disk_usage(existing).free,
        checkpoint_bytes=saved + round(optimizer_bytes),
        checkpoints_kept=checkpoints_kept,
        num_checkpoints=num_checkpoints,
        final_model_bytes=saved,
    )


def describe_machine(context: DistributedContext) -> Machine:
    """The machine of this process."""
    return Machine(
        device=context.device,
        device_name=device_name(context.device),
        device_memory_bytes=total_memory_bytes(context.device),
        num_cores=num_usable_cores(),
        processes_here=num_processes_here(context.world_size),
        system=platform.platform(),
        versions=installed_versions(),
    )


def compute_environment(device: str, *, reuses_freed_memory: bool) -> ComputeEnvironment:
    """What this process computes by.

    Args:
        device: of this process.
        reuses_freed_memory: whether the heap keeps freed memory.
    """
    return ComputeEnvironment(
        device=device.partition(":")[0],
        gpu=None if device == "cpu" else device_name(device),
        cpu=device_name("cpu"),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        num_threads=torch.get_num_threads(),
        versions=installed_versions(),
        variables=kernel_variables(),
        reuses_freed_memory=reuses_freed_memory,
        gpu_allocator=allocator_settings(device),
    )


def _text_of(path: Path) -> str:
    """A file's text; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def device_name(device: str) -> str:
    """The vendor's name of the device, or of the CPU."""
    if device.startswith("cuda"):
        return gpu_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device == "cpu" and cpuinfo.is_file():
        lines = _text_of(cpuinfo).splitlines()
        names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
