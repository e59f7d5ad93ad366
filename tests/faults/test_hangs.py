"""A process that hangs: all exit in time with their stacks on disk, and the resumed run equals an uninterrupted one."""

from __future__ import annotations

import sys
import time

import pytest

from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.processes import Process, is_running, settings, sft, weights_of

pytestmark = pytest.mark.slow
TIMEOUT = 6


def hanging(folder, when, *arguments):
    return Process(
        folder,
        sys.executable,
        "tests/support/run_hanging.py",
        *arguments,
        f"--hang_timeout_seconds={TIMEOUT}",
        HANG_AT=when,
        PYTHONPATH=str(REPOSITORY),
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = sft(folder, *settings(folder / "out"), "--num_gpus=2")
    assert process.end(120) == 0, process.err
    return weights_of(folder / "out")


@pytest.mark.parametrize("how", ["sleep", "library", "stopped"])
def test_a_process_that_hangs_ends_all_in_time_and_the_resumed_run_is_identical(tmp_path, uninterrupted, how):
    output = tmp_path / "out"
    process = hanging(tmp_path, f"{how}:1:6", *settings(output, "--save_steps=3"), "--num_gpus=2")
    process.wait_for("step  5/", 90)
    since, children = time.monotonic(), process.children()
    assert process.end(TIMEOUT + 40) == 142, process.err
    took = time.monotonic() - since
    assert took < TIMEOUT + (30 if how == "stopped" else 8)
    assert not any(map(is_running, children))
    stacks = (output / "hang-rank-0.txt").read_text()
    assert stacks.startswith(messages.IN_STEP.format(rank=0, step=6))
    assert "training_step" in stacks or "get_batch_samples" in stacks, stacks
    assert messages.NO_PROGRESS.format(rank=0, step=6) in process.err
    assert process.err.count(messages.HUNG_OR_WAITED) == 1
    assert "Traceback" not in process.err
    if how == "sleep":
        assert "tests/support/run_hanging.py" in (output / "hang-rank-1.txt").read_text()
    elif how == "library":
        assert "tests/support/run_hanging.py" in process.err
    more = ["--save_steps=3", "--num_gpus=2", "--resume_from_checkpoint=auto"]
    again = sft(tmp_path / "again", *settings(output, *more))
    assert again.end(120) == 0, again.err
    assert messages.RESUMING_FROM.format(path="") in again.out
    assert "checkpoint-3" in again.out
    assert weights_of(output) == uninterrupted


@pytest.mark.parametrize("how", ["sleep", "library"])
def test_a_single_process_that_hangs_ends_itself(tmp_path, how):
    process = hanging(tmp_path, f"{how}:0:3", *settings(tmp_path / "out"))
    process.wait_for("step  2/", 90)
    assert process.end(TIMEOUT + 15) in (142, -14)
    assert "tests/support/run_hanging.py" in (
        process.err if how == "library" else (tmp_path / "out/hang-rank-0.txt").read_text()
    )


def test_a_worker_that_hangs_writes_its_stack_and_is_ended(tmp_path):
    process = hanging(tmp_path, "worker:0:2", *settings(tmp_path / "out", "--dataloader_num_workers=1"))
    process.wait_for(process.children, 120)  # the loader's worker, of the first evaluation
    (worker,) = process.children()
    assert process.end(4 * TIMEOUT + 20) == 142, process.err  # the first batch may take long
    assert not is_running(worker)
    assert "get_row_or_hang" in process.err


def test_a_hang_causes_a_restart_if_restarts_are_left(tmp_path, uninterrupted):
    output = tmp_path / "out"
    process = hanging(tmp_path, "sleep:1:6", *settings(output, "--save_steps=3"), "--num_gpus=2", "--max_restarts=1")
    assert process.end(300) == 0, process.err
    assert messages.RESTARTED in process.out
    assert weights_of(output) == uninterrupted
