"""Speed and memory of the output layer's loss: this pipeline's, torch's `linear_cross_entropy`, and plain logits.

    python benchmarks/bench_loss.py [--rows 1024] [--hidden 576] [--vocabulary 49152] [--dtype float32] [--device cpu]

Each round runs every variant once, forward and backward with respect to the hidden states and the layer's weight, over
the same tensors. Printed: the median time and its range, the peak memory beyond the tensors (on a GPU), and the largest
difference of the gradients from those of plain logits in float64, relative to the largest gradient. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="supervised positions")
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    from sft.processes.heap import reuse_freed_memory

    reuse_freed_memory("auto", options.device)
    generator = torch.Generator().manual_seed(0)
    shapes = ((options.rows, options.hidden), (options.vocabulary, options.hidden))
    kind = getattr(torch, options.dtype)
    hidden, weight = ((torch.randn(shape, generator=generator) / 8).to(options.device, kind) for shape in shapes)
    targets = torch.randint(options.vocabulary, (options.rows,), generator=generator).to(options.device)
    losses = variants()
    exact = gradients(losses["plain logits"], hidden.double(), weight.double(), targets)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    peaks: dict[str, int] = {}
    for round_number in range(options.rounds + 1):
        for name, loss in losses.items():
            took, peak = timed(loss, hidden, weight, targets)
            if round_number:  # the first one allocates memory
                seconds[name].append(took)
            peaks[name] = peak
    print("| loss | time | peak memory beside the tensors | difference from float64 |\n|---|---|---|---|")
    cells = {}
    for name, loss in losses.items():
        found = gradients(loss, hidden, weight, targets)
        error = max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))
        times = sorted(seconds[name])
        cells[name] = {"seconds": statistics.median(times), "peak_bytes": peaks[name], "error": error}
        shown = f"{peaks[name] / 2**20:,.0f} MiB" if peaks[name] else "not measured"
        span = f"{times[0] * 1e3:.0f} to {times[-1] * 1e3:.0f}"
        print(f"| {name} | {statistics.median(times) * 1e3:.0f} ms ({span}) | {shown} | {error:.1e} |")
    print("RESULT " + json.dumps(cells))


def variants() -> dict[str, Loss]:
    """Name -> a sum of cross-entropies of hidden states, weight and targets."""
    from sft.modeling.supervised_loss import linear_cross_entropy_sum

    losses: dict[str, Loss] = {
        "this pipeline": lambda hidden, weight, targets: linear_cross_entropy_sum(hidden, weight, None, targets),
        "plain logits": lambda hidden, weight, targets: functional.cross_entropy(
            functional.linear(hidden, weight).float() if hidden.dtype != torch.double else hidden @ weight.T,
            targets,
            reduction="sum",
        ),
    }
    fused, chunks = (getattr(where, name, None) for where, name in _TORCHS)
    if fused is not None and chunks is not None:  # torch 2.13 and later
        losses["torch's linear_cross_entropy"] = lambda hidden, weight, targets: fused(
            hidden, weight, targets, reduction="sum", options=chunks()
        )
    return losses


_TORCHS = ((functional, "linear_cross_entropy"), (torch.nn, "LinearCrossEntropyOptions"))


def gradients(loss: Loss, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Of the hidden states and of the weight."""
    leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
    loss(*leaves, targets).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def timed(loss: Loss, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    """Seconds of a forward and a backward pass, and its peak memory beyond what was in use; 0 on a CPU."""
    on_gpu = hidden.is_cuda
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    gradients(loss, hidden, weight, targets)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() - before if on_gpu else 0


if __name__ == "__main__":
    main()
