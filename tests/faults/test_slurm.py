"""The SLURM scripts on a real SLURM: a job stopped before its time limit is requeued and ends with the same result.

Runs if `sinfo` answers. Needs two idle nodes that share this folder; they need no GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.processes import Process, settings, weights_of

STEPS = 60


def answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def num_nodes() -> int:
    if shutil.which("sinfo") is None:
        return 0
    done = subprocess.run(["sinfo", "-h", "-o", "%D"], capture_output=True, text=True, check=False, timeout=60)
    return sum(map(int, done.stdout.split())) if done.returncode == 0 else 0


@pytest.fixture(scope="module", autouse=True)
def _slurm():
    if num_nodes() < 2:
        pytest.skip("needs a SLURM with two nodes")


class Job:
    """A job that runs one of the scripts, with its log."""

    def __init__(self, folder: Path, script: str, *arguments: str, options: tuple[str, ...] = ()):
        self.log_file, self.folder = folder / "job.log", folder
        config = folder / "config.yaml"
        config.write_text("")
        command = [
            "sbatch",
            "--parsable",
            "--gres=none",
            "--cpus-per-task=1",
            "--time=20",
            *options,
            f"--output={self.log_file}",
            f"examples/{script}",
            str(config),
            *arguments,
        ]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHON": sys.executable,
                "OMP_NUM_THREADS": "1",
                "SFT_LOG_DIR": str(folder / "logs"),
                "SFT_PROCESSES_PER_NODE": "2" if script == "slurm_job.sh" else "1",
            },
        )
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.strip()

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.is_file() else ""

    def state(self) -> dict[str, str]:
        words = answer("scontrol", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, holds, what: str, seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.state()}\n{self.log}"
            time.sleep(0.2)

    def stop_before_time_limit(self, step: int) -> None:
        """After a step, send the signal of `--signal=B:USR1`, and wait until the job is requeued."""
        self.wait_for(lambda: f"step {step:2d}/{STEPS}" in self.log, f"step {step}")
        before = self.state()["Restarts"]
        answer("scancel", "--batch", "--signal=USR1", self.number)
        self.wait_for(
            lambda: self.state()["JobState"] == "PENDING" and self.state()["Restarts"] != before, "the requeue", 120
        )
        time.sleep(10)  # the node is still cleaning up the old processes
        answer("scontrol", "update", f"JobId={self.number}", "StartTime=now")  # else SLURM delays it by two minutes

    def end(self) -> str:
        self.wait_for(lambda: self.state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), "the end")
        return self.state()["JobState"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    more = [f"--max_steps={STEPS}", "--num_gpus=2"]
    process = Process(folder, sys.executable, "sft_main.py", *settings(folder / "out", *more))
    assert process.end(300) == 0, process.err
    return weights_of(folder / "out")


@pytest.mark.slurm
@pytest.mark.parametrize("script", ["slurm_multi_node.sh", "slurm_job.sh"])
def test_a_job_that_is_stopped_twice_ends_with_the_weights_of_an_uninterrupted_run(tmp_path, uninterrupted, script):
    output = tmp_path / "out"
    job = Job(tmp_path, script, *settings(output, f"--max_steps={STEPS}"))
    try:
        job.stop_before_time_limit(5)
        job.stop_before_time_limit(30)
        assert job.end() == "COMPLETED", job.log
    finally:
        subprocess.run(["scancel", job.number], check=False, timeout=60)
    assert job.log.count(messages.STOPPED_AT) == 2
    assert job.log.count(messages.RESUMING_FROM.format(path="")) == 2
    assert "Traceback" not in job.log
    assert weights_of(output) == uninterrupted
    events = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "loss" in event] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]


@pytest.mark.slurm
def test_a_job_that_cannot_run_reports_it_and_is_not_requeued(tmp_path):
    job = Job(tmp_path, "slurm_multi_node.sh", "--learning_rat=1")
    assert job.end() == "FAILED"
    assert messages.UNKNOWN_KEY.format(key="learning_rat") in job.log
    assert "Traceback" not in job.log
    assert job.state()["Restarts"] == "0"


@pytest.mark.slurm
def test_a_job_that_is_cancelled_saves_and_is_not_requeued(tmp_path):
    output = tmp_path / "out"
    job = Job(tmp_path, "slurm_job.sh", *settings(output, f"--max_steps={STEPS}"))
    job.wait_for(lambda: f"step  3/{STEPS}" in job.log, "step 3")
    answer("scancel", "--batch", "--signal=TERM", job.number)
    assert job.end() == "FAILED"
    assert messages.STOPPED_AT in job.log
    assert job.state()["Restarts"] == "0"
