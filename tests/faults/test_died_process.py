"""A process that is killed: no process is left running, and the resumed run is identical to an uninterrupted one."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.support import messages
from tests.support.processes import Process, is_running, settings, sft, weights_of

pytestmark = pytest.mark.slow


def all_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = sft(folder, *settings(folder / "out"), "--num_gpus=2")
    assert process.end(120) == 0, process.err
    return weights_of(folder / "out")


def test_a_killed_launcher_ends_its_processes(tmp_path):
    process = sft(tmp_path, *settings(tmp_path / "out"), "--max_steps=100000", "--num_gpus=2")
    process.wait_for("/100000  loss")
    children = process.children()
    assert len(children) == 2
    os.kill(process.popen.pid, signal.SIGKILL)
    process.popen.wait()
    assert all_gone(children)


def test_a_killed_process_ends_the_others_and_the_resumed_run_is_identical(tmp_path, uninterrupted):
    output = tmp_path / "out"
    more = ["--num_gpus=2", "--save_steps=3", f"--log_dir={tmp_path / 'logs'}"]
    process = sft(tmp_path, *settings(output, *more))
    process.wait_for("step  5/")
    children = process.children()
    os.kill(children[1], signal.SIGKILL)
    assert process.end(60) == 137, process.err
    assert messages.RANK_KILLED.format(rank=1, signal="SIGKILL") in process.err
    assert messages.RANK_LOG.format(path=tmp_path / "logs" / "rank-1.log") in process.err
    assert all_gone(children, seconds=1)
    again = sft(tmp_path / "again", *settings(output, *more), "--resume_from_checkpoint=auto")
    assert again.end() == 0, again.err
    assert weights_of(output) == uninterrupted


def test_a_killed_process_is_restarted_if_restarts_are_left(tmp_path, uninterrupted):
    output = tmp_path / "out"
    process = sft(tmp_path, *settings(output, "--num_gpus=2", "--save_steps=3", "--max_restarts=1"))
    process.wait_for("step  5/")
    os.kill(process.children()[0], signal.SIGKILL)
    assert process.end(90) == 0, process.err
    assert messages.RESTARTED in process.out
    assert weights_of(output) == uninterrupted


def test_two_nodes_on_this_machine_end_with_the_weights_of_one(tmp_path, uninterrupted):
    common = ["--config", "/dev/null", "--gpus", "1", "--nodes", "2", "--rendezvous", "localhost:29617"]
    nodes = []
    for rank in (0, 1):
        config = tmp_path / f"node-{rank}.yaml"
        config.write_text("")
        common[1] = str(config)
        nodes.append(
            Process(
                tmp_path / f"node-{rank}",
                "./launch_training.sh",
                *common,
                "--node_rank",
                str(rank),
                *settings(tmp_path / "out"),
            )
        )
    for node in nodes:
        assert node.end(120) == 0, node.err
    assert weights_of(tmp_path / "out") == uninterrupted
    assert sys.platform != "linux" or sum(messages.SAVED_MODEL.format(kind="model") in node.out for node in nodes) == 1
