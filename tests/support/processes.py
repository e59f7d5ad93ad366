"""Runs of the command in new processes: started, waited for, signalled, inspected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.paths import REPOSITORY

STEPS = 12


def settings(output: Path, *more: str) -> list[str]:
    """A run of the shipped model that takes seconds."""
    return [
        "--model_name_or_path=examples/tiny-chat",
        "--train_file=examples/data/orders_train.jsonl",
        "--validation_file=examples/data/orders_validation.jsonl",
        "--max_seq_length=256",
        "--use_cpu",
        "--bf16=false",
        "--per_device_train_batch_size=2",
        f"--max_steps={STEPS}",
        "--save_steps=1000",
        "--eval_steps=1000",
        "--logging_steps=1",
        "--report_to=none",
        "--sample_prompts=[]",
        f"--output_dir={output}",
        *more,
    ]


class Process:
    """A running command; its standard output and error are files."""

    def __init__(self, folder: Path, *command: str, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / "stdout.txt", folder / "stderr.txt"]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.popen = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment},
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def children(self) -> list[int]:
        """The processes that it started itself, oldest first."""
        return children_of(self.popen.pid)

    def wait_for(self, what: str | Callable[[], object], seconds: float = 60) -> None:
        """Waits until a text was written, or until something holds."""
        holds = (lambda: what in self.out) if isinstance(what, str) else what
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                os.killpg(self.popen.pid, signal.SIGKILL)
                raise AssertionError(f"{what} did not come:\n{self.out[-2000:]}\n{self.err}")
            assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.out}\n{self.err}"
            time.sleep(0.005)

    def end(self, seconds: float = 60) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.popen.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s:\n{self.out}\n{self.err}") from None


def sft(folder: Path, *arguments: str, **environment: str) -> Process:
    """`python sft_main.py` with these arguments."""
    return Process(folder, sys.executable, "sft_main.py", *arguments, **environment)


def children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def is_running(pid: int) -> bool:
    """Whether there is such a process, zombies excluded."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def weights_of(folder: Path) -> bytes:
    """The saved weights, byte for byte."""
    return (folder / "model.safetensors").read_bytes()
