"""Counts of trained tokens and rows, the training clock, and the speed, memory and utilization that a step logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from sft.batching.transfer import to_device
from sft.common.run_records import DistributedContext, ModelFootprint
from sft.modeling.flops import training_flops
from sft.processes.device_memory import peak_memory_bytes, reserved_memory_bytes, total_memory_bytes, used_memory_bytes
from sft.processes.utilization import CpuUtilization, GpuUtilization

logger = logging.getLogger("sft.train")
COUNTED = ("supervised", "tokens", "rows", "computed", "squares", "weight", "weighted_rows")
"""Counts of a micro-batch that are added up; see `sft.batching.layout.BatchCounts`."""
_SPEEDS = ("supervised_tokens_per_second", "tokens_per_second", "examples_per_second", "computed_tokens_per_second")
_SEEN = ("supervised_tokens_seen", "tokens_seen", "rows_seen")
_NUM_COUNTS = len(COUNTED) + 1


class TrainingProgress:
    """Counts over all ranks, and a clock that is stopped while training is paused."""

    def __init__(
        self,
        context: DistributedContext,
        device: torch.device,
        *,
        footprint: ModelFootprint,
        peak_flops: float | None = None,
    ):
        """
        Args:
            context: this process.
            device: holds the counts, so that counting does not synchronize with it.
            footprint: sizes of the model, to compute the FLOPs of its tokens.
            peak_flops: peak FLOPs per second of one device; None if unknown.
        """
        self.counts = torch.zeros(_NUM_COUNTS, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        """Supervised tokens, tokens, rows, computed tokens (with padding; shared leading tokens once), sum of the
        squared row lengths, weights in the loss, weighted rows, empty slots of a stream."""
        self.seen_before = [0.0] * len(_SEEN)
        """Supervised tokens, tokens and rows of the run before it was resumed."""
        self._footprint = footprint
        self.peak_flops = peak_flops
        self._context = context
        self._started = self._paused = 0.0
        self._is_paused = False
        self.on_pause: Callable[[str, float | None], None] = lambda activity, seconds: None
        """Called with the activity that pauses training and None, and again with the activity and its seconds."""
        self._logged = (0.0, [0.0] * _NUM_COUNTS)
        self._gpu = GpuUtilization(context.device)
        self._cpu = CpuUtilization()
        self._unknown: set[str] = set()
        """Metrics that could not be read once, which was logged."""

    def add_step(self, counts: Sequence[float]) -> torch.Tensor:
        """Adds this process's counts of a step, in the order of `counts`; returns those of all processes, float64.

        A collective operation.
        """
        of_all = to_device(torch.tensor(counts, dtype=torch.float64), self.counts.device)
        if self._context.world_size > 1:
            torch.distributed.all_reduce(of_all)
        self.counts += of_all
        return of_all

    def start(self) -> None:
        """Starts the clock at 0."""
        self._started, self._paused = time.perf_counter(), 0.0

    def seconds(self) -> float:
        """Seconds of training, without pauses."""
        return time.perf_counter() - self._started - self._paused

    @contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """Context in which the clock is stopped. Within another pause it has no effect.

        Args:
            activity: `evaluating`, `saving` or `answering`.
        """
        if self._is_paused:
            yield
            return
        self._is_paused, since = True, time.perf_counter()
        self.on_pause(activity, None)
        try:
            yield
        finally:
            self._is_paused = False
            seconds = time.perf_counter() - since
            self._paused += seconds
            self.on_pause(activity, seconds)

    def seen(self) -> list[float]:
        """Supervised tokens, tokens and rows of the run so far, over all processes and earlier starts."""
        return [before + here for before, here in zip(self.seen_before, self.counts.tolist(), strict=False)]

    def model_flops(self, *, since: Sequence[float] | None = None) -> int:
        """FLOPs of the trained tokens, without padding (see `training_flops`).

        Args:
            since: earlier counts to start from; None for everything since this process started.
        """
        counts = self.counts.tolist()
        _, tokens, _, _, squares, *_ = counts if since is None else [n - o for n, o in zip(counts, since, strict=True)]
        return training_flops(self._footprint, tokens=round(tokens), squares=round(squares))

    def utilization(self, flops_per_second: float) -> float | None:
        """Share of the peak of all devices (MFU), between 0 and 1; None if the peak is unknown."""
        if self.peak_flops is None:
            return None
        return flops_per_second / (self.peak_flops * self._context.world_size)

    def step_metrics(self, *, is_stream: bool) -> dict[str, float]:
        """Speed since the last call, memory and utilization. Sizes are in bytes, shares between 0 and 1."""
        seconds, counts = self.seconds(), self.counts.tolist()
        last_seconds, last_counts = self._logged
        self._logged = (seconds, counts)
        elapsed = max(seconds - last_seconds, 1e-9)
        values = {n: (new - old) / elapsed for n, new, old in zip(_SPEEDS, counts, last_counts, strict=False)}
        if is_stream:
            values["rows_dropped"] = counts[-1]
        values |= {name: round(count) for name, count in zip(_SEEN, self.seen(), strict=True)}
        values["model_flops_per_second"] = self.model_flops(since=last_counts) / elapsed
        mfu = self.utilization(values["model_flops_per_second"])
        if mfu is not None:
            values["mfu"] = mfu
        device = self._context.device
        total, peak = total_memory_bytes(device), peak_memory_bytes(device)
        read: dict[str, float | None] = {
            "memory_allocated_bytes": used_memory_bytes(device) or None,
            "peak_memory_bytes": peak or None,
            "memory_share": peak / total if peak and total else None,
            "cpu_utilization": self._cpu.read(),
        }
        unknown = {name for name, value in read.items() if value is None} - self._unknown
        if unknown:
            self._unknown |= unknown
            logger.info("The system does not report %s: not logged.", ", ".join(sorted(unknown)))
        read |= {"memory_reserved_bytes": reserved_memory_bytes(device), "gpu_utilization": self._gpu.read()}
        return values | {name: value for name, value in read.items() if value is not None}
