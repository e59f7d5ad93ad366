"""Processes with fake devices, forked from a server that has the fake library and has imported what runs need."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.forked import Ended, call
from tests.support.paths import REPOSITORY

TESLA_T4 = {"FAKE_CUDA_CAPABILITY": "7.5", "FAKE_CUDA_NAME": "Tesla T4", "FAKE_CUDA_MEMORY_MIB": "15109"}
NONE: Mapping[str, str] = {}
SECONDS = 900
_SITE = Path(__file__).parent / "site"
"""Python imports `sitecustomize` from there as it starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeRun:
    """The result of a command on fake devices."""

    status: int
    out: str
    err: str
    output_dir: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    """Of each rank: `steps` (see `Counting.stop`, and `compilations` until then), peak of `reserved` bytes, allocator
    `retries`, `graph_breaks`."""

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}"

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.output_dir / "run_summary.json").read_text(encoding="utf-8"))


class FakeCuda:
    """Starts processes with fake devices. Their settings are environment variables: see `fake_cuda/device.c`."""

    def __init__(self, library: Path, cache: Path):
        """
        Args:
            library: the fake library (see `fake_cuda.build`).
            cache: folder for compiled kernels.
        """
        self._environment = {
            "LD_PRELOAD": str(library),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(library.parent), os.environ.get("LD_LIBRARY_PATH")])),
            "TRITON_LIBCUDA_PATH": str(library.parent),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",  # nothing can touch a device's memory: shows who did
        }
        self.stop()
        # Once a process has looked for devices in the usual way, its children cannot use them (bitsandbytes does).
        hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        with patch.dict(os.environ, {**self._environment, **hidden}):
            forkserver.ensure_running()

    def stop(self) -> None:
        """Ends the server, which may be one without the library: the next process starts a new one."""
        forkserver._forkserver._stop()

    def call(self, folder: Path, function: str, *, device: Mapping[str, str] = NONE, **arguments: Any) -> Any:
        """The result of a function of `programs.py`, called in a new process; arguments and result are JSON values."""
        result = folder / "result.json"
        ended = self._fork(folder, "call_program", (str(result), function, json.dumps(arguments)), 1, device)
        assert ended.status == 0, ended.out + ended.err
        return json.loads(result.read_text())

    def run_sft(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        processes: int = 1,
        device: Mapping[str, str] = NONE,
        fault: Callable[[], Any] | None = None,
    ) -> FakeRun:
        """Runs the command, in several processes as torchrun starts them.

        Args:
            folder: for the output, and the record of the steps.
            settings: of the command.
            processes: number of processes.
            device: settings of the fake devices.
            fault: is called in each process before the command starts; it can be pickled.
        """
        arguments = [f"--{key}={value}" for key, value in settings.items() if value is not None]
        for old in folder.glob("record.*.json"):
            old.unlink()
        ended = self._fork(folder, "run_recorded", (str(folder / "record"), arguments), processes, device, fault)
        paths = [folder / f"record.{rank}.json" for rank in range(processes)]
        return FakeRun(
            status=ended.status,
            out=ended.out,
            err=ended.err,
            output_dir=Path(settings["output_dir"]),
            records=[json.loads(path.read_text()) for path in paths if path.is_file()],
        )

    def _fork(
        self,
        folder: Path,
        function: str,
        arguments: tuple[Any, ...],
        processes: int,
        device: Mapping[str, str],
        fault: Callable[[], Any] | None = None,
    ) -> Ended:
        with patch.dict(os.environ, {**self._environment, **device}):
            return call(folder, _call, function, *arguments, processes=processes, seconds=SECONDS, fault=fault)

    def start(self, command: Sequence[str], *, device: Mapping[str, str] = NONE) -> subprocess.CompletedProcess[str]:
        """Runs a command that starts processes itself: those of torchrun, or the sections of the check."""
        paths = [str(_SITE), str(REPOSITORY)]
        environment = {**os.environ, **self._environment, **device, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )


def _call(function: str, *arguments: Any) -> int:
    return getattr(importlib.import_module("tests.gpu_path.command"), function)(*arguments)
