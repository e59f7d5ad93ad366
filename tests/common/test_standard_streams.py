"""Standard streams that are closed, full, or without a reader."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import subprocess
import sys
import threading

import pytest

from sft.common import standard_streams
from sft.common.errors import UserError
from sft.common.standard_streams import GuardedOutput, OutputLost, continue_without_output, write_product
from tests.support.paths import REPOSITORY

GUARDED = "from sft.common.standard_streams import *; guard_standard_streams(); import os, sys\n"
LOST = b"standard output: cannot be written ("


def start(code, redirection="", **streams):
    """Run guarded Python code by a shell, as users redirect it."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, GUARDED + code],
        cwd=REPOSITORY,
        check=False,
        timeout=60,
        capture_output=True,
        **streams,
    )


@pytest.fixture
def broken():
    """The writing end of a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def stream_on(descriptor, *, write_through=False):
    raw = GuardedOutput(descriptor)
    return io.TextIOWrapper(raw if write_through else io.BufferedWriter(raw), write_through=write_through)


@pytest.mark.parametrize("write_through", [False, True])
@pytest.mark.parametrize("write", ["print", "log", "bytes", "descriptor"])
def test_no_write_to_a_broken_pipe_raises(broken, write, write_through, capfd):
    stream = stream_on(broken, write_through=write_through)
    handler = logging.StreamHandler(stream)
    for _ in range(2):
        if write == "print":
            print("x" * 100_000, file=stream, flush=True)
        elif write == "log":
            handler.emit(logging.makeLogRecord({"msg": "x"}))
        elif write == "bytes":
            stream.buffer.write(b"x" * 100_000)
            stream.flush()
        else:
            print("x", file=stream, flush=True)
            os.write(broken, b"x")  # as a library in C would
    stream.flush()
    stream.close()
    assert capfd.readouterr() == ("", "")


def test_a_pipe_that_does_not_block_gets_everything():
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETFL, fcntl.fcntl(writer, fcntl.F_GETFL) | os.O_NONBLOCK)
    received = []
    thread = threading.Thread(target=lambda: received.append(open(reader, "rb").read()))  # noqa: SIM115
    thread.start()
    stream = stream_on(writer)
    stream.write("x" * 1_000_000)
    stream.flush()
    os.close(writer)
    thread.join(60)
    assert received == [b"x" * 1_000_000]


@pytest.mark.parametrize(("path", "status", "problems"), [("/dev/full", 2, 1), (None, 0, 0)])
def test_a_product_that_cannot_be_written_is_one_line_unless_its_reader_has_gone(
    broken, path, status, problems, monkeypatch
):
    with open(path or os.dup(broken), "wb", buffering=0) as file:
        monkeypatch.setattr(sys, "stdout", stream_on(file.fileno()))
        with pytest.raises(OutputLost) as lost:
            write_product("text\n")
        assert (lost.value.exit_code, len(lost.value.problems)) == (status, problems)
        assert isinstance(lost.value, UserError)  # so each command handles it


def test_a_command_that_continues_writes_one_line(broken, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", stream_on(broken))
    continue_without_output()
    for _ in range(3):
        print("x", flush=True)
    assert capfd.readouterr().err.count("\n") == 1


def test_streams_that_are_not_guarded_are_left_alone(monkeypatch):
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", other)
    continue_without_output()
    write_product("text")
    assert other.getvalue() == "text"
    assert standard_streams._guarded(other, 1, is_closed=False) is other


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_file_never_gets_the_descriptor_of_a_closed_stream(tmp_path, closed):
    code = (
        f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2\n"
        "print('lost'); print('lost', file=sys.stderr); os.write(1, b'lost'); os.write(2, b'lost')\n"
        "assert sys.stdin.read() == ''; sys.stdout.isatty(); sys.stderr.isatty(); file.write('kept')"
    )
    done = start(code, closed, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full", "2>&-", "2> /dev/full", "| true", "2>&1 | true"])
def test_a_process_ends_with_its_own_status(redirection):
    code = "print('x', flush=True); print('y' * 99999); print('z', file=sys.stderr); sys.exit(7)"
    done = start(code, f"{redirection}; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 7, done.stderr
    assert b"Error" not in done.stderr


@pytest.mark.parametrize("text", ["Zoë 日本", "\udcff"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_characters_that_the_encoding_lacks_are_escaped(text, encoding):
    done = start(f"print({text!r}); print({text!r}, file=sys.stderr)", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    assert done.stdout == done.stderr == f"{text}\n".encode(encoding, "backslashreplace")


@pytest.mark.parametrize(
    ("command", "redirection", "status", "err"),
    [
        ("sft_main.py --help", "| true", 0, b""),
        ("sft_main.py --print_config --config_file sample_config.yaml", "| head -1", 0, b""),
        ("sft_main.py --print_config --config_file sample_config.yaml", "> /dev/full", 2, LOST),
        ("sft_main.py --config_file none.yaml", ">&- 2>&-", 2, b""),
        ("export_model.py --unknown", "2> /dev/full", 2, b""),
        ("compare_runs.py --help", ">&-", 2, LOST),
    ],
)
def test_commands_end_as_others_do_in_a_shell(command, redirection, status, err):
    line = f'"$0" {command} {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable], cwd=REPOSITORY, check=False, timeout=60, capture_output=True
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(err)
    assert done.stderr.count(b"\n") == bool(err)
