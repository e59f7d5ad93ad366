"""Memory and utilization of this process's device, in bytes and shares."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory_bytes(device: str) -> int:
    """Most memory in use at a time so far: allocated on a GPU, resident (RSS) on CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def total_memory_bytes(device: str) -> int | None:
    """Memory of the GPU, or of this process's share of RAM (the cgroup's limit, where there is one)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    limits = [_read_number("/sys/fs/cgroup/memory.max"), _read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        limits.append(int(meminfo.read_text().split()[1]) * 1024)
    known = [limit for limit in limits if limit]
    return min(known) if known else None


class GpuUtilization:
    """Share of the last moment in which the GPU was busy, by NVIDIA's management library; None where there is none."""

    def __init__(self, device: str):
        self._handle = None
        if not device.startswith("cuda"):
            return
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            # The UUID is the same in both libraries; the index is not, where CUDA_VISIBLE_DEVICES hides some.
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._pynvml = pynvml
        except (ImportError, AttributeError, pynvml_error()):
            self._handle = None  # Utilization is a courtesy: the run goes on, and the figure is left out.

    def read(self) -> float | None:
        """Between 0 and 1."""
        if self._handle is None:
            return None
        return self._pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100


def pynvml_error() -> type[Exception]:
    """The library's error class; one that is never raised where the library is missing."""
    try:
        import pynvml
    except ImportError:
        return ImportError
    return pynvml.NVMLError


def _read_number(path: str) -> int | None:
    file = Path(path)
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None
