"""Memory of this process's device, in bytes: total, available, used, and the peak.

On a GPU: torch's allocator. On CPU: the resident set size (RSS) of the process and the machine's RAM, or the limit of
the process's control group if there is one. A figure that the driver or the system refuses is 0: most are for a report,
which is no reason to end a run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import psutil
import torch

from sft.processes import control_groups

if sys.platform != "win32":
    import resource

Arguments = ParamSpec("Arguments")


def _zero_if_unknown(read: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """The function, with 0 in place of any error of a driver or of psutil."""

    @wraps(read)
    def read_or_zero(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        try:
            return read(*args, **kwargs)
        except Exception:
            return 0

    return read_or_zero


@_zero_if_unknown
def total_memory_bytes(device: str) -> int:
    """Memory of the GPU; on CPU the RAM that this process may use."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return min([psutil.virtual_memory().total, *(limit for limit, _ in control_groups.memory_limits())])


@_zero_if_unknown
def available_memory_bytes(device: str, processes_here: int = 1) -> int:
    """The most that this process could use now: what it uses already, and its share of what is free.

    Args:
        device: of this process.
        processes_here: processes of this run that share the machine's RAM (each has its own GPU).
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = min([psutil.virtual_memory().available, *(limit - used for limit, used in control_groups.memory_limits())])
    return used_memory_bytes(device) + max(free, 0) // processes_here


@_zero_if_unknown
def used_memory_bytes(device: str) -> int:
    """In use now: by tensors on a GPU, resident on CPU."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def process_memory_bytes(device: str) -> int:
    """What this process uses without a model: all of its resident set on CPU, nothing on a GPU."""
    return 0 if device.startswith("cuda") else used_memory_bytes(device)


def reserved_memory_bytes(device: str) -> int | None:
    """What torch's allocator has reserved on the GPU, in use or not; None on CPU."""
    return torch.cuda.memory_reserved(device) if device.startswith("cuda") else None


@_zero_if_unknown
def peak_memory_bytes(device: str) -> int:
    """The most memory in use at a time so far: by tensors on a GPU, resident on CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    # Linux counts pages per processor and sums approximately: its peak may be slightly below the current value.
    return max(_peak_resident_bytes(), used_memory_bytes(device))


@_zero_if_unknown
def memory_for_copy(device: str, budget_bytes: int | None, previous_bytes: int = 0) -> int:
    """Main memory that a copy of a GPU's or of this process's own state may take.

    At most half of what is free, since other programs take memory too. On CPU at most what is left of the budget above
    the peak so far.

    Args:
        device: of this process.
        budget_bytes: what a process on CPU may use; None for no limit but the machine's.
        previous_bytes: size of an earlier copy, which the peak may include.
    """
    room = (available_memory_bytes("cpu") - used_memory_bytes("cpu")) // 2
    if device == "cpu" and budget_bytes is not None:
        room = min(room, budget_bytes + previous_bytes - max(_peak_resident_bytes(), used_memory_bytes("cpu")))
    return max(room, 0)


class PeakMemory:
    """The peak memory use within the context, as `peak_bytes`: the amount that must fit.

    On a GPU everything that torch's allocator has reserved: that is what runs out. On CPU the resident set, sampled
    each millisecond, and the system's own high-water mark if it rises.
    """

    def __init__(self, device: str):
        self._device = device
        self.peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        self._before = _peak_resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize(self._device)
            self.peak_bytes = torch.cuda.max_memory_reserved(self._device)
            return
        self._done.set()
        self._thread.join()
        highest = _peak_resident_bytes()
        if highest > self._before:
            self.peak_bytes = highest

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, used_memory_bytes("cpu"))
            if self._done.wait(0.001):
                return


def _peak_resident_bytes() -> int:
    """The highest resident set size of this process so far."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
