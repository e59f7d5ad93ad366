"""The process of one section: makes its checks, and writes each as a line of JSON."""

from __future__ import annotations

import gc
import json
import os
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from typing import TextIO

from sft.check_gpu.options import CheckOptions
from sft.check_gpu.outcome import FAIL, Case, Outcome, skipped
from sft.check_gpu.sections import SECTIONS
from sft.check_gpu.supervision import NO_GPU_STATUS
from sft.common.device_errors import is_device_error, is_out_of_memory
from sft.common.errors import one_line
from sft.common.files import json_safe
from sft.processes.libraries import quiet_libraries
from sft.processes.output import print_errors


def run_section(name: str, options: CheckOptions) -> int:
    """Make the checks of a section; returns the exit status of the process."""
    with _take_standard_output() as report:
        quiet_libraries()
        bench = import_module("sft.check_gpu.bench").open_bench(name, options)  # imports torch
        if bench is None:
            return NO_GPU_STATUS
        module = import_module(f"sft.check_gpu.sections.{SECTIONS[name].module}")
        for case, outcome in outcomes(module.cases(bench), seconds=options.seconds_of(name)):
            line = {"name": case, **asdict(outcome)}
            report.write(json.dumps(json_safe(line)) + "\n")
            report.flush()
            bench.release_memory()
    return 0


def outcomes(cases: Iterator[Case], *, seconds: float) -> Iterator[tuple[str, Outcome]]:
    """Make checks one after the other; an error is a failure, and after an error of the device none is made.

    Args:
        cases: the checks.
        seconds: later checks are skipped.
    """
    started = time.monotonic()
    for case in _guarded(cases):
        if time.monotonic() - started > seconds:
            yield case.name, skipped(f"the {seconds:.0f} s of this section are over; give more with --seconds")
            continue
        try:
            outcome, is_lost = case.check(), False
        except Exception as error:
            is_lost = is_device_error(error) and not is_out_of_memory(error)
            outcome = _failed_by(error)
        yield case.name, outcome
        gc.collect()
        if is_lost:
            return


def _guarded(cases: Iterator[Case]) -> Iterator[Case]:
    """The checks; an error of what they share is a failure of one more."""
    try:
        yield from cases
    except Exception as error:
        outcome = _failed_by(error)
        yield Case(name="the other checks", check=lambda: outcome)


def _failed_by(error: Exception) -> Outcome:
    """The outcome of a check that raised an error; its traceback goes to the log."""
    lines = traceback.format_exception(error)
    print_errors("".join(lines).splitlines())
    figure = f"{type(error).__name__}: {one_line(error, 200)}"
    return Outcome(status=FAIL, figure=figure, values={"traceback": lines[-2:]})


def _take_standard_output() -> TextIO:
    """Standard output for the checks alone: what libraries and runs write to it goes to standard error from now on."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return report
