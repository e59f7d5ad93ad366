"""The benchmarks run, at toy size."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest

from tests.support import forked
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.slow


def run_script(script, *arguments):
    """Runs a script as `python SCRIPT ARGUMENTS` does, in a process that has imported the libraries."""
    sys.argv = [script, *arguments]
    sys.path.insert(0, str((REPOSITORY / script).parent))
    runpy.run_path(script, run_name="__main__")


def test_bench_prepare_runs(question_file):
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/bench_prepare.py",
            "--model=examples/tiny-chat",
            f"--data={question_file}",
            "--rows=300",
            "--workers=1",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert result["rows"] == 300
    assert result["rows_per_second"] == round(result["rows_per_second"]) > 0
    assert result["warm_seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "options", "count"),
    [
        ("rows", ["--sizes=200,400"], 2),
        ("function", ["--rows=200", "--busy=0.0001"], 3),
        ("turns", ["--rows=1000"], 3),
        ("array", ["--sizes=1,3"], 2),
        ("workers", ["--rows=3000"], 4),
    ],
)
def test_bench_prepare_runs_each_case(question_file, case, options, count):
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_prepare.py", "--model=examples/tiny-chat", f"--data={question_file}"]
        + [f"--case={case}", *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line.removeprefix("RESULT ")) for line in done.stdout.splitlines()]
    assert len(results) == count
    assert all(result["rows"] > 0 for result in results)


@pytest.mark.parametrize(
    ("mode", "layout"), [("full", "padded"), ("full", "flat"), ("lora", "packed"), ("full", "packed")]
)
def test_bench_train_runs(tmp_path, mode, layout):
    done = forked.call(
        tmp_path,
        run_script,
        "benchmarks/bench_train.py",
        "--size=toy",
        "--max_length=64",
        "--document=20",
        "--batch=2",
        "--steps=5",
        "--breakdown",
        "--bare",
        f"--mode={mode}",
        f"--layout={layout}",
        "--device=cpu",
        "--set=bf16=false",
    )
    assert done.status == 0, done.err
    result = json.loads(done.out.splitlines()[-1].removeprefix("RESULT "))
    assert result["is_padding_free"] is (layout != "padded")
    assert result["tokens_per_second"] > result["supervised_tokens_per_second"] > 0
    assert result["tflops"] > 0
    assert set(result["breakdown_seconds"]) == {"batch", "forward", "backward", "clip", "optimizer"}
    assert len(result["losses"]) == 5
    assert result["times_the_bare_loop"] > 0


def test_peers_are_driven_by_a_script_that_runs(tmp_path, question_file):
    done = forked.call(
        tmp_path,
        run_script,
        "benchmarks/peer_train.py",
        "trainer",
        "--model=examples/tiny-chat",
        "--steps=3",
        f"--data={question_file}",
    )
    assert done.status == 0, done.err
    assert json.loads(done.out.splitlines()[-1].removeprefix("RESULT "))["tokens_per_second"] > 0


def test_bench_startup_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_startup.py", "--repeats=1"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert 0 < result["help_seconds"] < result["dry_run_seconds"]
    assert result["help_seconds"] < result["first_step_seconds"] < result["whole_run_seconds"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bench_memory_runs():
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/bench_memory.py",
            "--models=toy",
            "--lengths=32",
            "--modes",
            "full",
            "lora",
            "--checkpointing=on",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert table[0] == "| model | mode | checkpointing | 2 x 32 |"
    assert [line.split(" | ")[1] for line in table[2:]] == ["full", "lora"]
    result = json.loads(last.removeprefix("RESULT "))
    assert result["worst"] < 0.5  # a toy is nearly all libraries
    assert all(cell["measured_mib"] > cell["before_mib"] for cell in result["cells"])


def test_bench_ddp_runs():
    toy = ["--rounds=1", "--layers=2", "--width=16", "--tokens=8", "--bucket_mb=0.01"]
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_ddp.py", *toy], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert set(result["seconds"]) == {"computation", "overlapping", "afterwards"}
    assert all(seconds > 0 for seconds in result["seconds"].values())


def test_bench_packed_runs(tmp_path):
    toy = ["--longest=64", "--window=16", "--rows=2", "--repeats=1", "--width=64", "--kinds", "window", "mixer"]
    done = forked.call(tmp_path, run_script, "benchmarks/bench_packed.py", *toy)
    assert done.status == 0, done.err
    result = json.loads(done.out.splitlines()[-1].removeprefix("RESULT "))
    assert [cell["kind"] for cell in result["cells"]] == ["window", "mixer"]
    assert all(cell["packed"] > 0 and cell["ratio"] > 0 for cell in result["cells"])
