"""What has been trained so far, in which time, and what the device holds: the figures that a step logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from device_memory import held_memory_bytes, peak_memory_bytes, reserved_memory_bytes, total_memory_bytes
from reporting.utilization import CpuUtilization, GpuUtilization
from sft_types import DistributedContext

COUNTED = ("supervised", "tokens", "rows", "laid_out")
"""Counts of a micro-batch that are added up; see `batching.layout.BatchCounts`."""
_SPEEDS = ("supervised_tokens_per_second", "tokens_per_second", "examples_per_second")


class TrainingProgress:
    """Counts of all ranks together, and a clock that stands still while nothing is trained."""

    def __init__(self, context: DistributedContext, device: torch.device):
        """Args:
        context: this process.
        device: where the counts are kept, so that counting never waits.
        """
        self.counts = torch.zeros(5, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        """Supervised tokens, tokens, rows, tokens with padding, empty slots of a stream."""
        self._context = context
        self._started = self._paused = 0.0
        self._logged = (0.0, [0.0] * 5)
        self._gpu = GpuUtilization(context.device)
        self._cpu = CpuUtilization()

    def start(self) -> None:
        """Sets the clock to 0."""
        self._started, self._paused = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Seconds of training."""
        return time.perf_counter() - self._started - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock for as long as this lasts."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - since

    def figures(self, *, is_stream: bool) -> dict[str, float]:
        """Speed since the last call, memory and utilization; bytes, and shares between 0 and 1."""
        seconds, counts = self.seconds(), self.counts.tolist()
        last_seconds, last_counts = self._logged
        self._logged = (seconds, counts)
        elapsed = max(seconds - last_seconds, 1e-9)
        values = {n: (new - old) / elapsed for n, new, old in zip(_SPEEDS, counts, last_counts, strict=False)}
        if is_stream:
            values["rows_dropped"] = counts[4]
        device = self._context.device
        values["memory_allocated_bytes"] = held_memory_bytes(device)
        reserved, total = reserved_memory_bytes(device), total_memory_bytes(device)
        if reserved is not None:
            values["memory_reserved_bytes"] = reserved
        values["peak_memory_bytes"] = peak_memory_bytes(device)
        if total:
            values["memory_share"] = values["peak_memory_bytes"] / total
        values["cpu_utilization"] = self._cpu.read()
        gpu = self._gpu.read()
        if gpu is not None:
            values["gpu_utilization"] = gpu
        return values
