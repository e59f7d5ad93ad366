"""Signals outside of training and during it; a second signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from sft.processes.signals import Interrupted, InterruptOnSignal, StopRequest
from tests.support import messages
from tests.support.paths import REPOSITORY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stop_request_records_a_signal_and_restores_the_handlers(number):
    before = signal.getsignal(number)
    with StopRequest() as request:
        assert not request.requested
        os.kill(os.getpid(), number)
        assert request.requested
    assert signal.getsignal(number) is before


def run_python(code: str) -> subprocess.CompletedProcess:
    code = "import os, signal, time; from sft.processes.signals import *; me = os.getpid(); " + code
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_signal_ends_the_process_although_the_main_thread_is_busy_in_a_library():
    done = run_python(
        "request = StopRequest(); request.__enter__(); os.kill(me, signal.SIGTERM); "
        "os.kill(me, signal.SIGTERM); time.sleep(0.1); print('delivered twice counts once', flush=True); "
        "import ctypes, threading; "
        "threading.Timer(2.5, lambda: os.kill(me, signal.SIGINT)).start(); "
        "ctypes.CDLL(None).sleep(30); ctypes.CDLL(None).sleep(30)"  # each signal ends one sleep
    )
    assert done.returncode == 130
    assert done.stdout == "delivered twice counts once\n"
    assert done.stderr == f"{messages.ENDED_BY_SECOND_SIGNAL}. {messages.CHECKPOINTS_COMPLETE}\n"


def test_interrupt_on_signal_raises_at_the_first_signal_and_restores_the_handlers():
    before = signal.getsignal(signal.SIGTERM)
    with InterruptOnSignal() as signals, pytest.raises(Interrupted) as caught, signals.raised():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_interrupt_on_signal_does_not_wait_for_a_library_that_blocks():
    done = run_python(
        "import ctypes, threading, sft.processes.signals as i; i.UNHANDLED_SECONDS = 0.5; "
        "InterruptOnSignal().__enter__(); "
        "threading.Timer(0.5, lambda: os.kill(me, signal.SIGUSR1)).start(); "
        # One call into C that continues after a signal, without the interpreter's lock: a thread's end is waited for.
        "c = ctypes.CDLL(None); thread = ctypes.c_ulong(); work = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)"
        "(lambda _: time.sleep(30)); c.pthread_create(ctypes.byref(thread), None, work, None); "
        "c.pthread_join(thread, None)"
    )
    assert done.returncode == 138
    assert done.stderr == f"{messages.ENDED_BY.format(signal='SIGUSR1')}. {messages.CHECKPOINTS_COMPLETE}\n"


@pytest.mark.parametrize(
    "inside",
    [
        "type('Left', (), {'__del__': send})()",
        "thing = type('Left', (), {})(); watch = weakref.ref(thing, send); del thing",
    ],
    ids=["finalizer", "weak reference"],
)
def test_interrupt_on_signal_where_no_exception_can_be_raised(inside):
    done = run_python(
        "import weakref; signals = InterruptOnSignal().__enter__(); scope = signals.raised(); scope.__enter__(); "
        "send = lambda _: os.kill(me, signal.SIGTERM);"
        f"{inside}; time.sleep(3); print('continued')"
    )
    assert done.returncode == 143
    assert done.stdout == ""
    assert done.stderr == f"{messages.ENDED_BY.format(signal='SIGTERM')}. {messages.CHECKPOINTS_COMPLETE}\n"


@pytest.mark.parametrize(
    "program",
    [
        "i.Thread.start = lambda thread: send(); signals.__enter__()",
        "signals.__enter__(); send()",
        "signals.__enter__(); scope = signals.raised(); scope.__enter__(); scope.__exit__(None, None, None); send()",
        "signals.__enter__(); signal.set_wakeup_fd = lambda fd: send(); signals.__exit__()",
    ],
    ids=["entering", "before", "after", "leaving"],
)
def test_interrupt_on_signal_ends_the_process_where_nothing_would_catch_the_exception(program):
    done = run_python(
        "import sft.processes.signals as i; send = lambda: os.kill(me, signal.SIGINT); "
        f"signals = InterruptOnSignal(); {program}; print('continued')"
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{messages.ENDED_BY.format(signal='SIGINT')}. {messages.CHECKPOINTS_COMPLETE}\n"


def test_a_forked_process_ends_by_sigterm_and_ignores_the_other_signals():
    with StopRequest() as request:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            os.write(writer, b"x")
            time.sleep(20)
            os._exit(0)
        os.read(reader, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not request.requested
