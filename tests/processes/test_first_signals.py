"""Ctrl-C while the command starts: one line and status 130, whatever is being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import messages
from tests.support.paths import REPOSITORY

DELAYS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Seconds after the command's first lines were run; before, Python itself starts."""


def start(output, *more):
    return subprocess.Popen(
        [
            sys.executable,
            "sft_main.py",
            "--config_file=sample_config.yaml",
            "--max_steps=100000",
            "--report_to=none",
            f"--output_dir={output}",
            *more,
        ],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_first_lines(process):
    """Until SIGTERM is caught: Python itself catches only SIGINT."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
    raise AssertionError("the command did not begin")


def check(process, seconds=60):
    _, err = process.communicate(timeout=seconds)
    assert process.returncode == 130, err
    assert err.count("\n") == 1, err
    assert err.startswith(messages.ENDED_BY.format(signal="SIGINT")), err


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_during_start_up_prints_one_line(tmp_path):
    for delay in DELAYS:
        process = start(tmp_path / "out")
        wait_for_first_lines(process)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        check(process)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--num_gpus=2", "--use_cpu"]], ids=["one", "launcher"])
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.5, 1.0, 2.0])
def test_ctrl_c_at_any_early_moment_prints_one_line(tmp_path, delay, more):
    process = start(tmp_path / "out", *more)
    wait_for_first_lines(process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    check(process)
