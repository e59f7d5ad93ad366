"""Memory of this process's device, in bytes: what there is, what is free, what is held, and the most that was.

On a GPU what torch's allocator holds; on CPU the resident set of the process (RSS), against its share of RAM: the limit
of its control group where there is one. torch is imported only where there is a GPU to ask.
"""

from __future__ import annotations

import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 2**60
"""Above this a control group's number means that there is no limit."""


def total_memory_bytes(device: str) -> int | None:
    """Memory of the GPU, or this process's share of RAM; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    known = [limit for limit, _ in _group_limits()] + [size for size in (_meminfo("MemTotal"),) if size]
    return min(known, default=None)


def available_memory_bytes(device: str, processes_here: int = 1) -> int | None:
    """What this process could hold at most as things stand: what it holds already, and its part of what is free.

    Args:
        device: of this process.
        processes_here: processes of this run that share the machine's RAM (not a GPU: each has its own).

    Returns:
        Bytes; None where the system does not tell.
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    free = [limit - used for limit, used in _group_limits()]
    if (in_all := _meminfo("MemAvailable")) is not None:
        free.append(in_all)
    return held_memory_bytes(device) + max(min(free), 0) // processes_here if free else None


def held_memory_bytes(device: str) -> int:
    """In use now: by tensors on a GPU, resident on CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device)
    status = _status("VmRSS")
    return status if status is not None else _peak_resident_bytes()


def process_memory_bytes(device: str) -> int:
    """What counts of this process beside its model: all that it holds on CPU, nothing on a GPU."""
    return 0 if device.startswith("cuda") else held_memory_bytes(device)


def reserved_memory_bytes(device: str) -> int | None:
    """What torch's allocator took from the GPU, in use or not; None on CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.memory_reserved(device)


def peak_memory_bytes(device: str) -> int:
    """Most memory in use at a time so far: by tensors on a GPU, resident on CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _peak_resident_bytes()


def room_for_a_copy(device: str, budget_bytes: int | None, before: int = 0) -> int:
    """Main memory that a copy of a GPU's or of this process's own state may take; 0 where the system does not tell.

    Half of what is free at most: others take memory too. On CPU what is left of the budget above the highest so far.

    Args:
        device: of this process.
        budget_bytes: what a process on CPU may hold; None for no limit but the machine's.
        before: bytes of an earlier copy, which the highest so far may contain.
    """
    available = available_memory_bytes("cpu")
    if available is None:
        return 0
    room = (available - held_memory_bytes("cpu")) // 2
    if device == "cpu" and budget_bytes is not None:
        room = min(room, budget_bytes + before - max(_peak_resident_bytes(), held_memory_bytes("cpu")))
    return max(room, 0)


class PeakWatch:
    """The most memory held while the context lasts, as `peak_bytes`: what there must be room for.

    On a GPU all that torch's allocator took from it: that is what runs out. On CPU the resident set, looked at every
    millisecond, and the system's own high-water mark where it rises.
    """

    def __init__(self, device: str):
        self._device = device
        self.peak_bytes = 0

    def __enter__(self) -> "PeakWatch":
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        self._before = _peak_resident_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self._device)
            self.peak_bytes = torch.cuda.max_memory_reserved(self._device)
            return
        self._done.set()
        self._thread.join()
        highest = _peak_resident_bytes()
        if highest > self._before:
            self.peak_bytes = highest

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, held_memory_bytes(self._device))
            if self._done.wait(0.001):
                return


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _status(name: str) -> int | None:
    """A size in `/proc/self/status`."""
    return _kibibytes("/proc/self/status", name)


def _meminfo(name: str) -> int | None:
    """A size in `/proc/meminfo`."""
    return _kibibytes("/proc/meminfo", name)


def _kibibytes(file: str, name: str) -> int | None:
    path = Path(file)
    if not path.is_file():
        return None
    lines = (line.split() for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return next((int(line[1]) * 1024 for line in lines), None)


def _group_limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each control group around this process, from version 2's files or version 1's.

    Cache that can be dropped is not counted as used.
    """
    for folder in _group_folders():
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit > _NO_LIMIT:
            continue
        stat = folder / "memory.stat"
        entries = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        droppable = int(entries.get("inactive_file", entries.get("total_inactive_file", 0)))
        yield limit, max(used - droppable, 0)


def _group_folders() -> Iterator[Path]:
    """The folders of this process's control group and of those around it, up to the root."""
    listing = Path("/proc/self/cgroup")
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        # In a container the place may be as the host sees it, and only the root be there.
        folder = root / place.lstrip("/")
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(root) and path.is_dir())


def _number(file: Path) -> int | None:
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None
