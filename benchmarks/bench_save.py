"""How long saving a checkpoint pauses training, in three modes.

    python benchmarks/bench_save.py --model DIR --data FILE [--rounds 3] [--set key=value ...]

The modes take turns, and each run is a new process:

    copied     training waits until the state is copied to memory; a thread writes it, hashes and syncs the files
    written    training waits until the files are written; the thread hashes and syncs them (if memory is short)
    whole      training waits until the checkpoint is published

The benchmark times how long training waits in each save except the last of a run, and the run from its first step to
the end of the last save. The machine should be idle otherwise. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WAYS = ("copied", "written", "whole")


def main() -> None:
    """Runs the benchmark, or one of its runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--save_steps", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print("RESULT " + json.dumps(one_run(options)))
        return
    waits: dict[str, list[float]] = {way: [] for way in WAYS}
    runs: dict[str, list[float]] = {way: [] for way in WAYS}
    size = 0
    for _ in range(options.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            result = json.loads(done.stdout.rpartition("RESULT ")[2])
            print(f"{way:<8} waits of {', '.join(f'{wait:.2f}' for wait in result['waits'])} s", flush=True)
            waits[way] += result["waits"]
            runs[way].append(result["training"])
            size = result["bytes"]
    print(f"checkpoint of {size / 2**20:,.0f} MiB")
    for way in WAYS:
        range_text = f"{min(waits[way]):.2f} to {max(waits[way]):.2f}"
        print(
            f"{way:<8} a save pauses training for {statistics.median(waits[way]):5.2f} s ({range_text}), "
            f"training and saving {statistics.median(runs[way]):6.1f} s"
        )
    medians = {way: round(statistics.median(waits[way]), 3) for way in WAYS}
    print("RESULT " + json.dumps({"bytes": size, "seconds": medians, "runs": runs, "waits": waits}))


def one_run(options: argparse.Namespace) -> dict:
    """Runs the command in this process, saving in the mode of `--way`."""
    sys.path.insert(0, str(REPOSITORY))
    import sft_main
    from sft.training import checkpointed_trainer
    from sft.training.progress import TrainingProgress

    waits, began, ended = [], [], []
    paused = TrainingProgress.paused

    @contextmanager
    def timed(progress: TrainingProgress, kind: str):
        started = time.perf_counter()
        with paused(progress, kind):
            yield
        if kind == "saving":
            ended.append(time.perf_counter())
            waits.append(ended[-1] - started)

    start = TrainingProgress.start
    TrainingProgress.paused = timed
    TrainingProgress.start = lambda progress: (began.append(time.perf_counter()), start(progress))[1]
    if options.way != "copied":
        checkpointed_trainer.memory_for_copy = lambda *_: 0
    if options.way == "whole":
        checkpointed_trainer.trackers_take_checkpoints = lambda *_: True
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model_name_or_path": Path(options.model).resolve(),
            "train_file": Path(options.data).resolve(),
            "output_dir": f"{folder}/out",
            "max_seq_length": 512,
            "per_device_train_batch_size": 2,
            "max_steps": options.steps,
            "save_steps": options.save_steps,
            "save_total_limit": 2,
            "report_to": "none",
            "sample_prompts": "[]",
            "learning_rate": 1e-5,
        }
        arguments = [f"--{key}={value}" for key, value in settings.items()] + [f"--{each}" for each in options.set]
        status = sft_main.main(arguments)
        if status:
            sys.exit(status)
        newest = max(Path(folder, "out").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    return {"waits": waits[:-1], "training": ended[-1] - began[0], "bytes": size}


if __name__ == "__main__":
    main()
