"""The benchmarks run, at toy size."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import REPOSITORY


def test_bench_prepare_runs(question_file):
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_prepare.py", "--model=examples/tiny-chat", f"--data={question_file}",
         "--rows=300", "--workers=1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["rows"] == 300
    assert result["rows_per_second"] == round(result["rows_per_second"]) > 0
    assert result["warm_seconds"] > 0


def test_bench_startup_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_startup.py", "--repeats=1"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 0 < result["help_seconds"] < result["dry_run_seconds"]
    assert result["help_seconds"] < result["first_step_seconds"] < result["whole_run_seconds"]
