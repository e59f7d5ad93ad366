"""The terminal during a run: one line of progress below the log, on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

from sft.processes.live_line import LiveLine, fitted
from sft.processes.terminal import can_draw
from tests.support.paths import REPOSITORY

UP, ERASE, HIDE, SHOW = "\x1b[1A", "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


def screen_of(output: str) -> list[str]:
    """The lines that a terminal shows in the end: moves of the cursor and erased lines are applied."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[\??\d*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", output.replace("\r\n", "\n")):
        if piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif piece == "\r":
            column = 0
        elif piece == UP:
            row -= 1
        elif piece == ERASE:
            lines[row] = ""
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return lines


def run_on_terminal(*arguments: str, width: int, interrupt_at: bytes | None = None) -> tuple[int, str, bool]:
    """Exit status, all that was written, and whether the terminal's modes are as they were."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    modes = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [sys.executable, "sft_main.py", *arguments],
        cwd=REPOSITORY,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    written, deadline = b"", time.monotonic() + 300
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            written += os.read(ours, 65536)
        elif process.poll() is not None:
            break
        if interrupt_at is not None and interrupt_at in written:
            os.write(ours, b"\x03")  # as the key: the terminal makes a signal of it
            interrupt_at = None
    same = termios.tcgetattr(theirs) == modes
    os.close(ours)
    os.close(theirs)
    return process.wait(timeout=10), written.decode(), same


@pytest.fixture
def settings(model_folder, question_file, tmp_path):
    return [
        f"--model_name_or_path={model_folder('llama')}",
        f"--train_file={question_file}",
        "--max_seq_length=64",
        f"--output_dir={tmp_path / 'out'}",
        "--validation_split=0.25",
        "--report_to=none",
        "--bf16=false",
        "--sample_max_new_tokens=4",
        "--logging_steps=1",
        "--per_device_train_batch_size=4",
        "--use_cpu",
    ]


def test_a_terminal_of_60_columns_shows_one_line_below_the_log_and_is_restored(settings):
    status, written, same = run_on_terminal(*settings, "--max_steps=6", "--eval_steps=3", width=60)
    assert status == 0, written
    assert same
    drawn = re.findall(rf"{re.escape(ERASE)}(step [^\x1b\r\n]*)", written)
    assert any("left" in piece and "loss" in piece for piece in drawn)
    assert any("evaluating" in piece for piece in drawn)
    assert [piece for piece in drawn if len(piece) >= 60] == []
    screen = screen_of(written)
    assert not [line for line in screen if line.startswith("step ")], "nothing of it is left in the end"
    assert [line.split()[3] for line in screen if line.startswith("validation at step")] == ["0", "3", "6"]
    sequences = re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]|\x1b", written)
    assert set(sequences) <= {UP, ERASE, HIDE, SHOW}, "no colour, nothing else that acts"
    assert written.count(HIDE + SHOW) == written.count(HIDE), "a killed process must not leave the cursor hidden"


def test_ctrl_c_restores_the_terminal(settings):
    status, written, same = run_on_terminal(*settings, "--max_steps=100000", width=100, interrupt_at=b"tokens/s")
    assert status == 130, written
    assert same
    screen = screen_of(written)
    assert any(line.startswith("Stopped at step") for line in screen)
    assert screen[-1] == ""
    assert "Traceback" not in written


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch) -> Terminal:
    """Standard output and standard error on one terminal. Not a fixture: pytest sets its own streams for each phase."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_live_line_stays_below_what_is_written(monkeypatch):
    terminal = open_terminal(monkeypatch)
    line = LiveLine(terminal, width=20, redirects=True)
    line.show(["step 1", "loss 2.0"])
    print("a message that is longer than the terminal is wide")
    line.show(["step 2", "loss 1.0", "does not fit"])
    message = "a message that is longer than the terminal is wide"
    assert screen_of(terminal.getvalue()) == [message, "step 2  loss 1.0"]
    sys.stdout.write("half ")
    line.show(["step 3"])
    sys.stdout.write("a line\n")
    assert screen_of(terminal.getvalue()) == [message, "half a line", "step 3"]
    line.show(["step 4"])
    print("a warning", file=sys.stderr)
    assert screen_of(terminal.getvalue())[2:] == ["a warning", "step 4"]
    line.clear()
    assert screen_of(terminal.getvalue())[3:] == ["", ""]
    assert sys.stdout is sys.stderr is terminal


def test_live_line_leaves_standard_error_alone_where_it_is_a_file(monkeypatch):
    terminal = open_terminal(monkeypatch)
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    line = LiveLine(terminal, width=20, redirects=True)
    line.show(["step 1"])
    print("a warning", file=sys.stderr)
    line.clear()
    assert file.getvalue() == "a warning\n"
    assert "warning" not in terminal.getvalue()


def test_live_line_draws_only_what_has_changed(monkeypatch):
    terminal = open_terminal(monkeypatch)
    line = LiveLine(terminal, width=80)
    for _ in range(3):
        line.show(["step 1"])
    assert terminal.getvalue().count("step 1") == 1


def test_live_line_can_be_shown_again_after_it_was_cleared(monkeypatch):
    terminal = open_terminal(monkeypatch)
    line = LiveLine(terminal, width=80)
    for _ in range(2):
        line.show(["step 1"])
        line.clear()
        line.clear()
    assert terminal.getvalue().count("step 1") >= 2
    assert not any(screen_of(terminal.getvalue()))


def test_without_a_terminal_there_is_no_line_and_rich_is_not_imported():
    code = (
        "import io, sys; from sft.processes.terminal import live_terminal, open_live_line; "
        "from sft.processes.logs import configure_logging; configure_logging(); "
        "assert open_live_line(io.StringIO()) is None\n"
        "with live_terminal() as line: assert line is None and sys.stdout is sys.__stdout__\n"
        "assert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fitted_omits_what_does_not_fit_and_writes_out_control_characters():
    assert fitted(["step 1/2", "1:00 left", "loss 1.0"], 20) == "step 1/2  1:00 left"
    assert fitted(["step 1/2", "a part that is long", "short"], 15) == "step 1/2  short"
    assert fitted(["step 1/2"], 4) == "step"
    assert fitted(["\x1b[2J"], 20) == "\\x1b[2J"


@pytest.mark.parametrize(("term", "expected"), [("xterm", True), ("dumb", False), (None, False)])
def test_can_draw_on_a_terminal_that_is_not_dumb(monkeypatch, term, expected):
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    assert can_draw(Terminal()) is expected
    assert not can_draw(io.StringIO())


def test_a_run_without_a_terminal_logs_the_time_left(settings):
    command = [sys.executable, "sft_main.py", *settings, "--max_steps=4"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    steps = [line for line in run.stdout.splitlines() if line.startswith("step ")]
    assert all(re.search(r"  \d+:\d\d left$", line) for line in steps[:-1])
    assert len(steps) == 4
    assert "left" not in steps[-1]
