"""How fast this machine is, by a short trial: what a table of processors would get wrong."""

from __future__ import annotations

import time

import torch

SIZE = 512
ROUNDS = 5
CLEARLY_FASTER = 1.5
"""Times as fast: less could be noise, and a run that goes on tomorrow must come to the same."""


def is_bfloat16_faster_on_cpu() -> bool:
    """Whether this CPU multiplies matrices clearly faster in bfloat16 than in float32; takes some milliseconds.

    Processors with AMX do so several times as fast; without, many take twice as long, whatever they say they support.
    """
    return _best_seconds(torch.float32) > CLEARLY_FASTER * _best_seconds(torch.bfloat16)


def _best_seconds(dtype: torch.dtype) -> float:
    """The fastest of a few products: noise only ever adds."""
    left, right = (torch.ones(SIZE, SIZE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 1):  # the first prepares the kernel
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
