"""Two processes: DDP trains as one process does, and hides its communication behind the backward pass."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import FinishedRun, largest_difference, largest_relative, run, save_rows, save_small_model
from sft.processes.environment import num_usable_cores

_STEPS = 6
_ALLOWED_LOSS = 1e-5
_ALLOWED_WEIGHTS = 1e-3
"""Adam divides by the root of small sums, which enlarges rounding errors of single weights."""
_ALLOWED_SHARE = 1.05
"""Of the step with one bucket that is sent at the end."""
_ONE_BUCKET_MIB = 2**14


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    devices = bench.num_gpus if bench.on_gpu else num_usable_cores()
    if devices < 2:
        yield Case(name="DDP", check=lambda: skipped("two GPUs are needed" if bench.on_gpu else "two cores are needed"))
        return
    runs = _Runs(bench)
    yield Case(name="two processes equal one", check=runs.equality)
    yield Case(name="communication is hidden", check=runs.overlap)


class _Runs:
    """The runs."""

    def __init__(self, bench: Bench):
        self._bench = bench
        count = bench.small_length(8, 4)
        self._two = {"num_gpus": 2, "per_device_train_batch_size": count, "ddp_backend": bench.backend}
        self._one = {"per_device_train_batch_size": count}
        self._rows = save_rows(bench, 2 * count * _STEPS, (bench.small_length(512, 24), bench.small_length(300, 16)))
        self._model = save_small_model(bench)

    @cached_property
    def _together(self) -> Mapping[str, FinishedRun]:
        """All runs of two processes, before any other: a run of one process hides the other GPUs from this one."""
        float32, one_bucket = {"bf16": False, "fp16": False}, {"ddp_bucket_cap_mb": _ONE_BUCKET_MIB}
        wanted: dict[str, Mapping[str, Any]] = {"float32": float32, "overlapping": {}, "afterwards": one_bucket}
        return {name: self._run(f"two-{name}", **self._two, **settings) for name, settings in wanted.items()}

    def _run(self, name: str, **settings: Any) -> FinishedRun:
        length = self._bench.small_length(512, 32)
        defaults = {"max_seq_length": length, "max_steps": _STEPS, "save_strategy": "no"}
        return run(self._bench, name, self._model, self._rows, **defaults | settings)

    def equality(self) -> Outcome:
        """In float32, with the same rows in each step."""
        together = self._together["float32"]
        alone = self._run("one", **self._one, gradient_accumulation_steps=2, bf16=False, fp16=False)
        losses = largest_relative(alone.losses, together.losses)
        weights = largest_difference(alone.weights(), together.weights())
        return judged(
            losses <= _ALLOWED_LOSS and weights <= _ALLOWED_WEIGHTS,
            f"losses differ by {losses:.1e} (at most {_ALLOWED_LOSS:g}), weights by {weights:.1e} "
            f"(at most {_ALLOWED_WEIGHTS:g})",
            losses=losses,
            weights=weights,
        )

    def overlap(self) -> Outcome:
        """The time of a step with buckets, with a single bucket that is sent at the end, and of one process alone."""
        together = (self._together[name] for name in ("overlapping", "afterwards"))
        times = [finished.seconds_per_step for finished in (*together, self._run("alone", **self._one))]
        if not all(times):
            return judged(False, "a run logged no speed, so its steps have no time")
        overlapping, afterwards, alone = map(statistics.median, times)
        visible = afterwards - alone
        hidden = (afterwards - overlapping) / visible if visible > 0 else 0.0
        note = "" if self._bench.on_gpu else " (not judged on a CPU)"
        return judged(
            overlapping <= _ALLOWED_SHARE * afterwards or not self._bench.on_gpu,
            f"{1000 * overlapping:.1f} ms a step, {1000 * afterwards:.1f} ms with one bucket, {1000 * alone:.1f} ms "
            f"alone: {hidden:.0%} hidden{note}",
            overlapping_seconds=overlapping,
            one_bucket_seconds=afterwards,
            alone_seconds=alone,
            hidden=hidden,
        )
