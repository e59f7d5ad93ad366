"""The watchdog, in small new processes: it ends those without progress, and no others."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from sft.processes.watchdog import HUNG_STATUS, Watchdog
from tests.support import messages
from tests.support.paths import REPOSITORY


def run_python(folder, body: str, seconds: float = 0.5) -> subprocess.CompletedProcess:
    code = (
        "import ctypes, os, signal, sys, time\nfrom sft.processes.watchdog import Watchdog\n"
        f"with Watchdog({seconds}, rank=3, folder={str(folder)!r}) as dog:\n    {body}\nprint('ended by itself')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_hang_is_reported_with_phase_step_and_stacks(tmp_path):
    done = run_python(tmp_path / "out", "dog.expect('in step', 7); time.sleep(60)")
    assert done.returncode == HUNG_STATUS == 142
    report = (tmp_path / "out" / "hang-rank-3.txt").read_text()
    assert report.startswith(messages.NO_PROGRESS.format(rank=3, step=7))
    assert 'File "<string>", line 4 in <module>' in report
    assert "watchdog.py" in report  # all threads
    assert done.stderr.count("\n") == 1
    assert messages.STACKS.format(path=tmp_path / "out" / "hang-rank-3.txt") in done.stderr
    assert messages.HANG_TIMEOUT.format(seconds=0.5) in done.stderr


def test_a_hang_in_a_library_that_holds_the_interpreter_ends_too(tmp_path):
    done = run_python(tmp_path, "dog.expect('in step', 7); time.sleep(0.2); ctypes.PyDLL(None).sleep(60)")
    assert done.returncode == -signal.SIGALRM
    assert 'File "<string>", line 4 in <module>' in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_library_that_hangs_at_once_after_a_phase_with_more_patience_ends_too(tmp_path):
    """The thread had no time to set the timer."""
    done = run_python(
        tmp_path, "dog.expect('loading', patience=9); dog.expect('in step', 1); ctypes.PyDLL(None).sleep(4)"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, "")


@pytest.mark.parametrize(
    "body",
    [
        "[(dog.expect('in step', i), time.sleep(0.2)) for i in range(8)]",
        "dog.expect('in step', 1, patience=4); time.sleep(1.2)",
        "time.sleep(1.2)",
        "dog.expect('in step', 1); dog.pause(); time.sleep(1.2)",
        "dog.on_preparation(True); dog.on_preparation(False); time.sleep(1.2)",
    ],
    ids=["progress", "patience", "nothing expected", "paused", "waiting for the preparation"],
)
def test_progress_and_phases_that_may_take_long_are_not_a_hang(tmp_path, body):
    done = run_python(tmp_path, body)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended by itself\n", "")


def test_another_process_that_hangs_ends_this_one_but_an_old_report_does_not(tmp_path):
    (tmp_path / "hang-rank-1.txt").write_text("an earlier run's")
    other = str(tmp_path / "hang-rank-0.txt")
    body = f"dog.expect('in step', 3); time.sleep(1); open({other!r}, 'w').write('new'); time.sleep(60)"
    done = run_python(tmp_path, body, seconds=10)
    assert done.returncode == HUNG_STATUS
    assert messages.ANOTHER_HUNG.format(rank=3, step=3) in done.stderr
    assert "line 4 in <module>" in (tmp_path / "hang-rank-3.txt").read_text()


def test_a_process_that_was_stopped_for_a_while_has_not_hung(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\nfrom sft.processes.watchdog import Watchdog\n"
            f"with Watchdog(4, rank=0, folder={str(tmp_path)!r}) as dog:\n"
            "    dog.expect('in step', 1); print('watched', flush=True); time.sleep(1.6); time.sleep(1.6)\n",
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.8)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0
    process.stdout.close()


def test_no_file_remains_and_0_disables_the_watchdog(tmp_path):
    before = signal.getsignal(signal.SIGALRM)
    for seconds in (0, 100):
        with Watchdog(seconds, rank=0, folder=tmp_path) as dog:
            dog.expect("in step", 1)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before
