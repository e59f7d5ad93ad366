"""How much of a slow network DDP hides behind the backward pass.

    python benchmarks/bench_ddp.py [--processes 2] [--rounds 5]

Each process trains a small model on the CPU over gloo. Every bucket arrives late: as if it were sent after the previous
one, over a link whose speed is chosen so that all gradients together take about as long as a step's computation. The
three modes take turns within each round:

    computation   no delay: the step alone
    overlapping   buckets of --bucket_mb MiB, as in training
    afterwards    a single bucket, which is sent when the backward pass has ended

Printed: the median step time of the slowest process per mode, and how much of the delay is hidden. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MODES = ("computation", "overlapping", "afterwards")
ONE_BUCKET_MIB = 1 << 14


def main() -> None:
    """Starts the processes, or is one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bucket_mb", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    if "RANK" in os.environ:
        run_rank(options)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(options.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:]],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(options.processes)
    ]
    sys.exit(max(abs(rank.wait()) for rank in ranks))


class SlowLink:
    """Delivers reduced buckets one after the other, each after the time that its bytes take."""

    def __init__(self) -> None:
        self.seconds_per_byte = 0.0
        self._queue: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._deliver, daemon=True).start()

    def send(self, work: Any, bucket: Any) -> LateWork:
        late = LateWork()
        self._queue.put((late, work, bucket))
        return late

    def _deliver(self) -> None:
        while True:
            late, work, bucket = self._queue.get()
            work.wait()
            time.sleep(bucket.numel() * bucket.element_size() * self.seconds_per_byte)
            late.future.set_result([bucket])


class LateWork:
    """What a collective operation returns."""

    def __init__(self) -> None:
        import torch

        self.future: Any = torch.futures.Future()

    def get_future(self) -> Any:
        return self.future

    def wait(self) -> None:
        self.future.wait()


def run_rank(options: argparse.Namespace) -> None:
    """Times the modes on this process; the first one prints the result."""
    import torch
    from torch import distributed
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft.modeling import data_parallel

    distributed.init_process_group("gloo")
    rank, link = distributed.get_rank(), SlowLink()
    send = data_parallel._Exchange._send
    data_parallel._Exchange._send = lambda exchange, bucket: link.send(send(exchange, bucket), bucket)  # type: ignore[assignment,method-assign,return-value]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(0, 256, (1, options.tokens))
    group = distributed.new_group(backend="gloo")
    buckets = {"computation": options.bucket_mb, "overlapping": options.bucket_mb, "afterwards": ONE_BUCKET_MIB}
    num_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())

    def step(gradients: Any) -> float:
        distributed.barrier()
        started = time.perf_counter()
        gradients.begin_step(accumulates=False)
        gradients.module({"input_ids": tokens, "labels": tokens}).backward()
        gradients.end_step(data_parallel.Failure.NONE)
        taken = torch.tensor(time.perf_counter() - started)
        for weight in model.parameters():
            weight.grad = None
        distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        return float(taken)

    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    slow = 0.0
    for _ in range(options.rounds):
        for mode in MODES:
            link.seconds_per_byte = 0.0
            loss = data_parallel.MicroBatchLoss(model, lambda model, batch: model(**batch).loss)
            gradients = data_parallel.GradientSum(loss, group, bucket_cap_mb=buckets[mode])
            step(gradients)
            if not slow:
                slow = statistics.median(step(gradients) for _ in range(3)) / num_bytes
            link.seconds_per_byte = 0.0 if mode == "computation" else slow
            times[mode] += [step(gradients) for _ in range(3)]
            del gradients, loss  # the hooks of the old DDP disappear with it
    if rank == 0:
        report({mode: statistics.median(values) for mode, values in times.items()}, slow * num_bytes, options)
    distributed.destroy_process_group()


def report(medians: dict[str, float], delay: float, options: argparse.Namespace) -> None:
    """Prints the step times and the hidden share of the delay."""
    hidden = {mode: 1 - (medians[mode] - medians["computation"]) / delay for mode in MODES[1:]}
    print(f"{options.processes} processes; the link alone takes {1000 * delay:.0f} ms for all gradients")
    print(f"{'computation':<12} {1000 * medians['computation']:.0f} ms a step")
    for mode, share in hidden.items():
        print(f"{mode:<12} {1000 * medians[mode]:.0f} ms a step; {100 * share:.0f} % of the delay is hidden")
    sum_of_both = medians["computation"] + delay
    print(f"The sum of both is {1000 * sum_of_both:.0f} ms.")
    print("RESULT " + json.dumps({"seconds": medians, "delay": delay, "hidden": hidden}))


if __name__ == "__main__":
    main()
