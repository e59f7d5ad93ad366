"""Runs the command several times in the same processes, disturbed where that is asked for.

    torchrun --nproc_per_node=2 tests/support/run_in_turn.py RUNS.json

Not a test itself: `test_fsdp` starts it. `RUNS.json` is a list of `{"arguments": [...]}`, each perhaps with
`"spoil": N` (on the last process the loss of the N-th micro-batch is no number), `"stop_after": N` (the last process
gets SIGTERM behind step N), or `"killed": [FOLDER, N]` (it finds what that run would have left, killed behind its step
N). The exit statuses are written beside it.
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import torch

import sft_main
from tests.support.checkpoints import as_if_killed

IS_FIRST = os.environ["RANK"] == "0"
IS_LAST = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1


@contextmanager
def spoiled(number):
    """The loss of the `number`-th micro-batch is no number; 0: all are."""
    from sft.modeling.output_layer import OutputLayer

    whole, calls = OutputLayer.loss_sum, []

    def loss_sum(*args, **kwargs):
        calls.append(None)
        total = whole(*args, **kwargs)
        return total * float("nan") if number and len(calls) == number and IS_LAST else total

    OutputLayer.loss_sum = loss_sum
    try:
        yield
    finally:
        OutputLayer.loss_sum = whole


def stop_behind(step, metrics):
    """Sends this process SIGTERM once a step is in the records."""
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def main(path: str) -> None:
    statuses = []
    for run in json.loads(Path(path).read_text()):
        output = Path(next(word.partition("=")[2] for word in run["arguments"] if word.startswith("--output_dir=")))
        if run.get("stop_after") and IS_LAST:
            Thread(target=stop_behind, args=(run["stop_after"], output / "metrics.jsonl"), daemon=True).start()
        if "killed" in run:
            if IS_FIRST:
                as_if_killed(Path(run["killed"][0]), output, run["killed"][1])
            torch.distributed.barrier()
        with spoiled(run.get("spoil", 0)):
            statuses.append(sft_main.main(run["arguments"]))
    if IS_FIRST:
        Path(path).with_suffix(".statuses").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(sys.argv[1])
