"""Startup time: of `--help`, of a dry run on prepared data, and until a run's first step is finished.

    python benchmarks/bench_startup.py [--model DIR] [--config_file FILE] [--repeats 3]

Each time is measured from the start of a new `python sft_main.py ...` process. An additional run before them warms up
the system's file cache and leaves prepared rows. The help and the dry run are timed until the process ends. The first
step is timed until its line arrives on standard output: with `logging_steps: 1` each step is logged as soon as it is
finished, and the log is flushed line by line. Without `--config_file` the run has one step, no evaluation, no sample
answers and no tracker. The machine should be idle otherwise. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REPOSITORY / "examples/tiny-chat"), help="folder of a model")
    parser.add_argument("--config_file", help="a configuration to run instead of the small one")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        run = run_arguments(Path(folder), options.config_file, options.model)
        commands = {"help": ["--help"], "dry_run": [*run, "--dry_run"], "first_step": run}
        seconds: dict[str, list[float]] = {name: [] for name in (*commands, "whole_run")}
        timed_run(commands["first_step"])
        for _ in range(options.repeats):
            for name, arguments in commands.items():
                whole, until_step = timed_run(arguments)
                seconds[name].append(whole if name != "first_step" else until_step)
                if name == "first_step":
                    seconds["whole_run"].append(whole)
    for name, values in seconds.items():
        print(f"{name:<11} {statistics.median(values):6.2f} s   ({', '.join(f'{value:.2f}' for value in values)})")
    medians = {f"{name}_seconds": round(statistics.median(values), 2) for name, values in seconds.items()}
    print("RESULT " + json.dumps({**medians, "repeats": options.repeats}))


def run_arguments(folder: Path, config_file: str | None, model: str) -> list[str]:
    """The arguments of a run that only writes into `folder`."""
    arguments = ["--output_dir", str(folder / "out"), "--data_cache_dir", str(folder / "cache"), "--logging_steps", "1"]
    if config_file is None:
        settings = {
            "model_name_or_path": str(Path(model).resolve()),
            "train_file": str(REPOSITORY / "examples/data/orders_train.jsonl"),
            "max_seq_length": 256,
            "max_steps": 1,
            "save_strategy": "no",
            "sample_prompts": [],
            "report_to": "none",
        }
        config_file = str(folder / "run.yaml")
        Path(config_file).write_text(json.dumps(settings), encoding="utf-8")  # JSON is valid YAML
    return ["--config_file", str(Path(config_file).resolve()), *arguments]


def timed_run(arguments: list[str]) -> tuple[float, float]:
    """Seconds until the process ends, and until the line of its first step (0 without one)."""
    started, until_step, printed = time.perf_counter(), 0.0, []
    command = [sys.executable, "sft_main.py", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            printed.append(line)
            if not until_step and line.startswith("step "):
                until_step = time.perf_counter() - started
    if process.returncode:
        raise SystemExit("".join(printed) + f"{' '.join(command)} exited with status {process.returncode}.")
    return time.perf_counter() - started, until_step


if __name__ == "__main__":
    main()
