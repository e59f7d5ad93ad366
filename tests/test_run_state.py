"""Checkpoints to go on from, earlier runs, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from run_state.checkpoints import (
    check_steps_are_left,
    check_writable,
    list_checkpoints,
    missing_files,
    resolve_checkpoint,
    set_aside_earlier_run,
)
from run_state.interruption import Interrupted, LeaveAtOnce, StopRequest
from sft_errors import ConfigError

COMPLETE = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "model.safetensors")


def make_checkpoint(folder, step, files=COMPLETE):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for name in files:
        (path / name).touch()
    return path


def test_list_checkpoints_is_ordered_by_step(tmp_path):
    for step in (100, 9, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("missing", COMPLETE)
def test_resolve_checkpoint_passes_over_an_incomplete_one(tmp_path, missing):
    make_checkpoint(tmp_path, 10)
    broken = make_checkpoint(tmp_path, 20, [name for name in COMPLETE if name != missing])
    assert missing_files(broken)
    assert resolve_checkpoint("auto", str(tmp_path)).name == "checkpoint-10"
    assert resolve_checkpoint(True, str(tmp_path)).name == "checkpoint-10"
    with pytest.raises(ConfigError, match="lacks"):
        resolve_checkpoint(str(broken), str(tmp_path))


def test_resolve_checkpoint_without_one(tmp_path):
    assert resolve_checkpoint(None, str(tmp_path)) is None
    assert resolve_checkpoint(False, str(tmp_path)) is None
    assert resolve_checkpoint("auto", str(tmp_path)) is None
    with pytest.raises(ConfigError, match="Write auto"):
        resolve_checkpoint(True, str(tmp_path))


def test_set_aside_earlier_run_moves_what_a_run_wrote_and_nothing_else(tmp_path):
    assert set_aside_earlier_run(tmp_path) is None
    make_checkpoint(tmp_path, 5)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-1"
    assert (tmp_path / "earlier-run-1" / "checkpoint-5" / "optimizer.pt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-run-1", "notes.txt"]
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert set_aside_earlier_run(tmp_path) == tmp_path / "earlier-run-2"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stop_request_remembers_a_signal_and_gives_the_handlers_back(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
    assert signal.getsignal(number) is before


def run_python(code: str) -> subprocess.CompletedProcess:
    code = "import os, signal, time; from run_state.interruption import *; me = os.getpid(); " + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_signal_leaves_at_once_though_the_main_thread_is_busy_in_a_library():
    done = run_python(
        "request = StopRequest(); request.__enter__(); os.kill(me, signal.SIGTERM); "
        "os.kill(me, signal.SIGTERM); time.sleep(0.1); print('delivered twice is one wish', flush=True); "
        "import ctypes, threading; "
        "threading.Timer(2.5, lambda: os.kill(me, signal.SIGINT)).start(); "
        "ctypes.CDLL(None).sleep(30); ctypes.CDLL(None).sleep(30)"  # each signal cuts one sleep short
    )
    assert done.returncode == 130
    assert done.stdout == "delivered twice is one wish\n"
    assert done.stderr == "Left at once on a second signal. Checkpoints that were saved before are whole.\n"


def test_leave_at_once_raises_at_the_first_signal_and_gives_the_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with LeaveAtOnce(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_leave_at_once_does_not_wait_for_a_library_that_hears_nothing():
    done = run_python(
        "import ctypes, threading, run_state.interruption as i; i.UNHEARD_SECONDS = 0.5; LeaveAtOnce().__enter__(); "
        "threading.Timer(0.5, lambda: os.kill(me, signal.SIGUSR1)).start(); "
        # One call into C that goes on after a signal, without the interpreter's lock: a thread's end is waited for.
        "c = ctypes.CDLL(None); thread = ctypes.c_ulong(); work = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)"
        "(lambda _: time.sleep(30)); c.pthread_create(ctypes.byref(thread), None, work, None); "
        "c.pthread_join(thread, None)"
    )
    assert done.returncode == 138
    assert done.stderr == "Ended by SIGUSR1. Checkpoints that were saved before are whole.\n"


def test_a_forked_process_ends_by_sigterm_and_leaves_the_rest_to_its_parent():
    with StopRequest() as request:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(20)
            os._exit(0)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not request.requested


@pytest.mark.parametrize(("step", "total", "is_fine"), [(3, 5, True), (4, 4, True), (5, 5, False), (8, 5, False)])
def test_check_steps_are_left_refuses_one_step_too_many(tmp_path, step, total, is_fine):
    checkpoint = make_checkpoint(tmp_path, step)
    check_steps_are_left(None, total, 2)
    if is_fine:
        check_steps_are_left(checkpoint, total, 2)
    else:
        with pytest.raises(ConfigError, match="nothing is left to train"):
            check_steps_are_left(checkpoint, total, 2)


def test_check_writable_refuses_a_file_in_the_way_and_makes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: .*file is a file; name a folder"):
        check_writable(tmp_path / "file" / "b")
