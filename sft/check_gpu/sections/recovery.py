"""Runs that are resumed, repeated, or run out of memory, against an uninterrupted one.

On a CPU, and with `full_determinism` on a GPU, they are equal to the bit. Otherwise the attention of a GPU adds up
gradients in another order each time, so losses are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import FinishedRun, largest_difference, largest_relative, run, save_rows, save_small_model
from sft.common.text import counted, size

_STEPS, _STEPS_ON_CPU = 6, 4
_ALLOWED_LOSS = 1e-2
"""Relative difference of losses without `full_determinism`."""
_LEAST_GAP = 1.1
"""By how much the peak of the full micro-batch must exceed that of its half, to fit one and not the other."""


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    runs = _Runs(bench)
    if bench.full_determinism:
        yield Case(name="a run twice", check=runs.twice)
    yield Case(name="save and resume", check=runs.resume)
    yield Case(name="out of memory, retried in chunks", check=runs.out_of_memory)


class _Runs:
    """The runs, the first of which the others are compared with."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self._rows = bench.small_length(16, 4)
        self._steps = bench.small_length(_STEPS, _STEPS_ON_CPU)
        self._straight_peak = 0

    def _run(self, name: str, **settings: Any) -> FinishedRun:
        bench, length = self._bench, self._bench.small_length(1024, 32)
        rows = save_rows(bench, self._steps * self._rows, (length, length // 2, length - 1))
        defaults = {
            "max_seq_length": length,
            "per_device_train_batch_size": self._rows,
            "max_steps": self._steps,
            "save_steps": 1000,
        }
        return run(bench, name, save_small_model(bench), rows, **defaults | settings)

    @cached_property
    def _straight(self) -> FinishedRun:
        """Trains without an interruption, and saves in the middle."""
        self._bench.reset_peak()
        found = self._run("straight", save_steps=self._steps // 2, save_total_limit="null")
        self._straight_peak = self._bench.peak_bytes()
        return found

    def twice(self) -> Outcome:
        """The same run again."""
        return self._compared(self._straight, self._run("again"))

    def resume(self) -> Outcome:
        """A run that is resumed from the checkpoint in the middle."""
        checkpoint = self._straight.output / f"checkpoint-{self._steps // 2}"
        return self._compared(self._straight, self._run("resumed", resume_from_checkpoint=checkpoint))

    def out_of_memory(self) -> Outcome:
        """A run beside an allocation that leaves room for half of its micro-batch, against one with such batches."""
        if not self._bench.on_gpu:
            return skipped("of a GPU's memory alone")
        _ = self._straight  # measures the peak, if that has not happened yet
        high = self._straight_peak
        self._bench.reset_peak()
        half = {"per_device_train_batch_size": self._rows // 2, "gradient_accumulation_steps": 2}
        halves = self._run("halves", **half)
        low = self._bench.peak_bytes()
        if high < _LEAST_GAP * low:
            return judged(False, f"the half micro-batch takes {size(low)}, the full one {size(high)}: no gap between")
        self._bench.release_memory()
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(free - (low + high) // 2, 0), dtype=torch.uint8, device=self._bench.device)
        short = self._run("short-of-memory")
        taken = ballast.numel()
        del ballast
        shortages = short.summary["memory_shortages"]["training"]
        if not shortages:
            return judged(False, f"memory did not run out beside an allocation of {size(taken)}", ballast_bytes=taken)
        return self._compared(halves, short, f"; {counted(shortages, 'shortage')} beside {size(taken)}")

    def _compared(self, right: FinishedRun, other: FinishedRun, note: str = "") -> Outcome:
        weights, others = right.weights(), other.weights()
        steps = [step for step in right.losses if step in other.losses]
        losses = largest_relative(right.losses, other.losses)
        differ = sum(not torch.equal(weights[name], others[name]) for name in weights)
        difference = largest_difference(weights, others)
        to_the_bit = self._bench.full_determinism or not self._bench.on_gpu
        is_right = losses <= (0 if to_the_bit else _ALLOWED_LOSS) and not (to_the_bit and differ)
        text = f"all {counted(len(weights), 'tensor')} and {counted(len(steps), 'loss')} equal to the bit"
        if differ or losses != 0:
            text = f"{differ} of {counted(len(weights), 'tensor')} differ, by up to {difference:.1e}; losses by "
            text += f"{losses:.1e} (at most {0.0 if to_the_bit else _ALLOWED_LOSS:g})"
        return judged(is_right, text + note, tensors_that_differ=differ, weights=difference, losses=losses)
