"""The terminal during a run: one line of progress below the log, on a real pseudo-terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from sft.processes.live_line import LiveLine, fitted
from sft.processes.terminal import can_colour, can_draw
from tests.support import messages
from tests.support.paths import REPOSITORY
from tests.support.terminals import ERASE, HIDE, SHOW, UP, run_on_terminal, screen_of, table_below


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
    assert [step for step in range(7) if messages.VALIDATION_AT.format(step=step) in screen] == [0, 3, 6]
    results = table_below(written, "validation")
    assert results[1].split() == ["before", "after"]
    assert [line.split()[0] for line in results[3:]] == ["validation", "perplexity", "token", "sequence"]
    sequences = re.findall(r"\x1b\[[^A-Za-z]*[A-Za-z]|\x1b", written)
    assert set(sequences) <= {UP, ERASE, HIDE, SHOW}, "no colour, nothing else that acts"
    assert written.count(HIDE + SHOW) == written.count(HIDE), "a killed process must not leave the cursor hidden"


def test_ctrl_c_restores_the_terminal(settings):
    status, written, same = run_on_terminal(*settings, "--max_steps=100000", width=100, interrupt_at=b"tokens/s")
    assert status == 130, written
    assert same
    screen = screen_of(written)
    assert any(line.startswith(messages.STOPPED_AT) for line in screen)
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


@pytest.mark.parametrize("width", [1, 20, 60, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "7", "NO_COLOR": "1"}])
def test_tables_fit_lose_nothing_and_act_on_nothing(monkeypatch, width, encoding, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    rows = [["a[b]x[/b] :smile:", "1.2345"], ["\x1b[2J\n\r", "67890"]]
    lines = LiveLine(stream, width=width).table("a title\x07", ["", "[red]va\x1blue"], rows)
    assert lines[0] == "a title\\x07"
    assert max(map(len, lines[1:])) <= max(width, 20)
    assert not any(character in line for line in lines for character in "\x1b\x07\r\n")
    assert "\n".join(lines).encode(encoding)
    shown, given = "".join(lines[1:]), "".join(map("".join, rows))
    assert [each for each in "123456789[]/:" if shown.count(each) < given.count(each)] == []
    if width > 40:
        assert lines[3].split() == ["a[b]x[/b]", ":smile:", *(["|"] if encoding == "ascii" else []), "1.2345"]
    assert stream.tell() == 0, "nothing is written"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_without_no_color(monkeypatch, variables, expected):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **variables}.items():
        monkeypatch.setenv(name, value)
    assert can_colour(Terminal()) is expected
    assert not can_colour(io.StringIO())


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
