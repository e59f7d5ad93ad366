"""Runs the sections, each in a process of its own, prints their lines and writes the JSON file.

After a device-side assertion or an illegal access nothing works in a process any more, and a kernel may hang: so a
section that dies or exceeds its time is a FAIL line, and the next one starts with a new process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any

from sft.check_gpu.options import CheckOptions
from sft.check_gpu.outcome import FAIL, PASS, SKIP
from sft.common.errors import ConfigError, one_line
from sft.common.files import json_safe, write_json
from sft.processes.machine import find_most_gpus
from sft.processes.output import print_errors, print_line, safe_line

NO_GPU = (
    "No GPU that torch can use was found: check the driver (nvidia-smi), CUDA_VISIBLE_DEVICES, and that torch is a "
    "build for it. --device cpu makes the same checks on the CPU, with small sizes."
)
NO_GPU_STATUS = 78
"""Exit status of a section's process that finds no GPU."""
_GRACE = 60.0
"""Seconds beyond its own that a section may take: the start of its process, and a check that began in time."""
_LOG_LINES = 40


def supervise(options: CheckOptions, arguments: Sequence[str]) -> int:
    """Run the sections; returns the exit status.

    Args:
        options: what to check.
        arguments: the command line, for the processes of the sections.

    Raises:
        ConfigError: if the JSON file cannot be written.
    """
    if options.device == "cuda" and find_most_gpus() == 0:
        print_errors([NO_GPU])
        return 2
    record = _Record(options, arguments)
    for name in options.sections:
        if record.seconds() > options.seconds:
            record.add(name, {"name": "all", "status": SKIP, "figure": f"the {options.seconds:g} s are over"})
            continue
        try:
            status = _run_section(name, options, arguments, record)
        except KeyboardInterrupt:
            record.write()
            return 130
        if status == NO_GPU_STATUS:
            print_errors([NO_GPU])
            return 2
        record.write()
    record.write()
    counts = record.counts()
    print_line(
        f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[SKIP]} skipped in {record.seconds():.0f} s. "
        f"Wrote {options.output}."
    )
    return 1 if counts[FAIL] else 0


class _Record:
    """The checks so far."""

    def __init__(self, options: CheckOptions, arguments: Sequence[str]):
        self._options = options
        self._arguments = arguments
        self._began = datetime.now(UTC)
        self._started = time.monotonic()
        self._checks: list[dict[str, Any]] = []
        self._logs: dict[str, list[str]] = {}
        self.write()

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def counts(self) -> dict[str, int]:
        found = [check["status"] for check in self._checks]
        return {status: found.count(status) for status in (PASS, FAIL, SKIP)}

    def add(self, section: str, check: dict[str, Any]) -> None:
        """Keep and print a check."""
        self._checks.append({"section": section, "values": {}} | check)
        print_line(f"{check['status']}  {section:<12} {check['name']:<42} {check['figure']}")

    def keep_log(self, section: str, lines: list[str]) -> None:
        """Keep the end of the output of a section with a FAIL line."""
        if any(check["section"] == section and check["status"] == FAIL for check in self._checks):
            self._logs[section] = [safe_line(line) for line in lines]

    def write(self) -> None:
        """Write the JSON file.

        Raises:
            ConfigError: if it cannot be written.
        """
        counts = self.counts()
        document = {
            "format": 1,
            "command": safe_line(" ".join(["python -m sft.check_gpu", *self._arguments])),
            "started": self._began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds(), 1),
            "device": self._options.device,
            "is_quick": self._options.is_quick,
            "passed": counts[PASS],
            "failed": counts[FAIL],
            "skipped": counts[SKIP],
            "checks": self._checks,
            "logs": self._logs,
        }
        path = self._options.output
        try:
            write_json(json_safe(document), path)
        except OSError as error:
            problem = error.strerror or one_line(error)
            raise ConfigError(f"command line: --output: {path} cannot be written: {problem}.") from None


def _run_section(name: str, options: CheckOptions, arguments: Sequence[str], record: _Record) -> int:
    """Run one section in a new process; returns its exit status."""
    limit = min(2 * options.seconds_of(name), max(options.seconds - record.seconds(), 0.0)) + _GRACE
    command = [sys.executable, "-m", "sft.check_gpu", *arguments, "--section", name]
    with tempfile.TemporaryDirectory(prefix="sft-check-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log.txt")
        with log.open("wb") as file, _process(command, folder, file) as process:
            watch = _Watch(process, limit)
            assert process.stdout is not None  # a pipe
            for line in process.stdout:
                with suppress(ValueError):  # a line that was cut when its process died
                    record.add(name, json.loads(line))
            watch.end()
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        status = process.returncode
        if watch.is_over:
            record.add(name, _failure(f"did not end within {limit:.0f} s"))
        elif status not in (0, NO_GPU_STATUS):
            last = next((line for line in reversed(lines) if line.strip()), "no output")
            how = f"ended by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
            record.add(name, _failure(f"{how}: {one_line(last, 200)}"))
        record.keep_log(name, lines[-_LOG_LINES:])
        return status


def _failure(figure: str) -> dict[str, Any]:
    return {"name": "the section's process", "status": FAIL, "figure": figure}


@contextmanager
def _process(command: Sequence[str], folder: str, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A section's process, which writes checks to its standard output and all else to `log`; killed at the end."""
    # In a session of its own, so that the processes that it starts can be ended with it.
    process = subprocess.Popen(
        [*command, "--folder", folder], stdout=subprocess.PIPE, stderr=log, start_new_session=True
    )
    try:
        yield process
        process.wait()
    finally:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # all of them have ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


class _Watch:
    """Kills a process after some time."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float):
        self.is_over = False
        self._process = process
        self._timer = Timer(seconds, self._end_process)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Stop watching. To be called when the process closes its output."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._timer.cancel()

    def _end_process(self) -> None:
        self.is_over = True
        _kill(self._process)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
