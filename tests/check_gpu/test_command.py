"""`python -m sft.check_gpu`: exit codes, lines, the JSON file; a section that dies or hangs does not end the others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft.check_gpu import __main__ as command
from sft.check_gpu import supervision
from sft.check_gpu.outcome import FAIL, PASS, SKIP, Case, judged
from sft.check_gpu.section_process import outcomes
from sft.check_gpu.sections import SECTIONS
from tests.support import messages
from tests.support.paths import REPOSITORY

PYTHON = sys.executable  # which a fixture replaces
CHILD = """\
#!{python}
import json, os, signal, sys, time
name = sys.argv[sys.argv.index("--section") + 1]
def line(status):
    print(json.dumps(dict(name="check", status=status, figure="1.0 of 2", values=dict(x=1.0))), flush=True)
print("Loading", name, file=sys.stderr)
line("PASS")
if name == "attention":
    print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "steps":
    line("FAIL")
if name == "memory":
    time.sleep(600)
if name == "copies":
    sys.exit(78)
"""
"""Stands for a section's process on a GPU."""


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Runs the command with `CHILD` for sections; returns the exit status, the lines and the JSON document."""
    child = tmp_path / "child"
    child.write_text(CHILD.format(python=sys.executable))
    child.chmod(0o755)
    monkeypatch.setattr(supervision.sys, "executable", str(child))
    monkeypatch.setattr(supervision, "find_most_gpus", lambda: 1)

    def run(*arguments):
        path = tmp_path / "check.json"
        status = command.main([*arguments, "--output", str(path)])
        captured = capfd.readouterr()
        return status, captured.out.splitlines(), captured.err, json.loads(path.read_text())

    return run


def test_without_a_gpu_the_command_ends_with_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(supervision, "find_most_gpus", lambda: 0)
    output = tmp_path / "check.json"
    assert command.main(["--output", str(output)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert messages.NO_GPU_FOUND in captured.err
    assert not output.exists()


def test_a_section_that_finds_no_gpu_ends_the_command(check):
    status, _, err, _ = check("--only", "copies", "several")
    assert status == 2
    assert messages.NO_GPU_FOUND in err


def test_sections_that_pass(check):
    status, lines, _, document = check("--only", "machine", "recovery")
    assert status == 0
    assert [line.split()[:2] for line in lines[:2]] == [["PASS", "machine"], ["PASS", "recovery"]]
    assert lines[2].startswith("2 passed, 0 failed, 0 skipped")
    assert document["checks"][0] == {
        "section": "machine",
        "name": "check",
        "status": "PASS",
        "figure": "1.0 of 2",
        "values": {"x": 1.0},
    }
    assert (document["passed"], document["failed"], document["skipped"], document["logs"]) == (2, 0, 0, {})
    assert document["format"] == 1
    assert document["command"].startswith("python -m sft.check_gpu --only machine recovery")


def test_sections_that_fail_or_die_do_not_end_the_others(check):
    status, _, _, document = check("--only", "attention", "steps", "recovery")
    assert status == 1
    found = [(each["section"], each["status"]) for each in document["checks"]]
    assert found == [
        ("attention", PASS),
        ("attention", FAIL),
        ("steps", PASS),
        ("steps", FAIL),
        ("recovery", PASS),
    ]
    assert "SIGSEGV: CUDA error: an illegal memory access was encountered" in document["checks"][1]["figure"]
    assert set(document["logs"]) == {"attention", "steps"}
    assert document["logs"]["steps"] == ["Loading steps"]


def test_a_section_that_hangs_is_ended(check, monkeypatch):
    monkeypatch.setattr(supervision, "_GRACE", 0.1)
    status, _, _, document = check("--only", "memory", "--seconds", "1")
    assert status == 1
    assert document["checks"][1]["status"] == FAIL
    assert "did not end" in document["checks"][1]["figure"]


def test_a_section_ends_with_the_command(check, tmp_path):
    code = (
        "import runpy, sys; from sft.check_gpu import supervision; "
        "sys.executable, supervision.find_most_gpus = sys.argv.pop(1), lambda: 1; "
        "runpy.run_module('sft.check_gpu', run_name='__main__', alter_sys=True)"
    )
    options = ["--only", "memory", "--output", str(tmp_path / "check.json")]
    started = [PYTHON, "-c", code, str(tmp_path / "child"), *options]
    process = subprocess.Popen(started, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith(PASS)  # its section has begun, and sleeps
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    children = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(str(tmp_path / "child").encode() in command for command in children)
    assert json.loads((tmp_path / "check.json").read_text())["passed"] == 1


def test_sections_after_the_time_are_skipped(check, monkeypatch):
    monkeypatch.setattr(supervision._Record, "seconds", lambda record: 5.0)
    status, _, _, document = check("--only", "machine", "--seconds", "4")
    assert status == 0
    assert [each["status"] for each in document["checks"]] == [SKIP]


def test_an_error_is_a_failure_and_the_next_check_is_made(capfd):
    def broken():
        raise ValueError("line one\nline two")

    cases = [Case(name="a", check=broken), Case(name="b", check=lambda: judged(True, "1"))]
    found = dict(outcomes(iter(cases), seconds=1000))
    assert found["a"].status == FAIL
    assert found["a"].figure == "ValueError: line one line two"
    assert found["b"].status == PASS
    assert "broken" in capfd.readouterr().err


def test_an_error_between_checks_is_a_failure(capfd):
    def cases():
        yield Case(name="a", check=lambda: judged(True, "1"))
        raise ValueError("no shape")

    found = [(name, outcome.status, outcome.figure) for name, outcome in outcomes(cases(), seconds=1000)]
    assert found == [("a", PASS, "1"), ("the other checks", FAIL, "ValueError: no shape")]


def test_nothing_is_checked_after_an_error_of_the_device():
    def broken():
        raise RuntimeError("CUDA error: device-side assert triggered")

    cases = [Case(name="a", check=broken), Case(name="b", check=lambda: judged(True, "1"))]
    assert [name for name, _ in outcomes(iter(cases), seconds=1000)] == ["a"]


def test_checks_after_the_time_of_their_section_are_skipped():
    cases = [Case(name="a", check=lambda: judged(True, "1"))]
    (found,) = [outcome for _, outcome in outcomes(iter(cases), seconds=-1)]
    assert found.status == SKIP


@pytest.mark.parametrize(
    "arguments", [["--only", "atention"], ["--seconds", "0"], ["--device", "tpu"], ["--output", "/none/check.json"]]
)
def test_a_mistake_in_the_options_is_one_line(check, arguments, capfd):
    assert command.main(["--only", "machine", "--output", "/none/c.json", *arguments]) == 2
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_the_command_runs_on_cpu(tmp_path):
    path = tmp_path / "check.json"
    arguments = ["-m", "sft.check_gpu", "--device=cpu", "--only", "machine", "--seconds=10000", f"--output={path}"]
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    assert (document["device"], document["failed"]) == ("cpu", 0)
    assert document["checks"][0]["values"]["torch"]
    assert all(each["section"] == "machine" for each in document["checks"])


def test_the_sections_are_documented():
    page = (REPOSITORY / "docs" / "check_a_gpu.md").read_text(encoding="utf-8")
    assert [name for name in SECTIONS if f"| `{name}` |" not in page] == []
