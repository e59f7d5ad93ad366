"""The compare command: text, image, user errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compare_runs import main
from tests.support import messages
from tests.support.compared_runs import write_run
from tests.support.paths import REPOSITORY
from tests.support.terminals import table_below, terminal_as_stdout


def test_main_prints_and_draws(tmp_path, capsys):
    folders = [write_run(tmp_path / name / "out", best=1.0 + place / 10) for place, name in enumerate("abc")]
    picture = tmp_path / "picture.png"
    assert main([*folders, "--output", str(picture)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(messages.NO_DIFFERENCES)
    assert next(line for line in out.splitlines() if "a/out" in line).split() == ["a/out", "b/out", "c/out"]
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000


def test_main_supports_names_in_any_script(tmp_path, capsys):
    folders = [write_run(tmp_path / name) for name in ("_a$x$", "b\x1b[31m")]
    assert main([*folders, "--output", str(tmp_path / "p.PNG")]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(("width", "num_tables"), [(40, 3), (60, 2), (200, 1)])
def test_main_draws_tables_on_a_terminal(tmp_path, capsys, monkeypatch, width, num_tables):
    monkeypatch.setattr("compare_runs.draw_comparison", lambda *arguments: None)
    names = ("a", "b\x1b[31m", "[red]c")
    folders = [write_run(tmp_path / name, best=1.0 + place / 10) for place, name in enumerate(names)]
    assert main(folders) == 0
    plain = capsys.readouterr().out
    with terminal_as_stdout(width) as written:
        assert main(folders) == 0
    assert "─" not in plain
    assert "\x1b" not in written.text
    screen = written.text.replace("\r\n", "\n").splitlines()
    assert screen.count(messages.RESULTS) == num_tables
    table = table_below(written.text, messages.RESULTS)
    assert table[1].split() == ["a", "b\\x1b[31m", "[red]c"][: 4 - num_tables]
    assert max(map(len, table)) <= width
    best = next(line for line in table if "loss, best" in line)
    assert best.split()[3:] == ["1.0000*", "1.1000", "1.2000"][: 4 - num_tables]
    assert {word for word in plain.split() if word[0].isdigit()} <= set(" ".join(screen).split())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["{a}"], "name two or more runs"),
        (["{a}", "{a}/"], "is named twice"),
        (["{a}", "{tmp}/nowhere"], "no folder '"),
        (["{a}", "{tmp}"], "contains no run (neither run_summary.json nor metrics.jsonl)"),
        (["{a}", "{broken}"], "run_summary.json: cannot be read"),
        (["{a}", "{b}", "--output", "x.jpg"], "expected a file name that ends in .png"),
        (["{a}", "{b}", "--output", "{tmp}/none/x.png"], "cannot be written"),
        (["{a}", "{b}", "--bogus"], "--bogus"),
        ([], "FOLDER"),
    ],
)
def test_main_reports_a_mistake_in_one_line(tmp_path, capsys, arguments, line):
    places = {"a": write_run(tmp_path / "a"), "b": write_run(tmp_path / "b"), "tmp": str(tmp_path)}
    places["broken"] = write_run(tmp_path / "broken")
    (tmp_path / "broken" / "run_summary.json").write_text("{")
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")


def test_help_imports_nothing_that_is_slow():
    code = (
        "import sys, compare_runs\n"
        "try: compare_runs.main(['--help'])\n"
        "except SystemExit: pass\n"
        "found = {'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare_runs.py" in done.stdout
