"""Copies of a checkpoint to main memory, and TF32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.program import run, save_rows, save_small_model
from sft.check_gpu.step_timing import matrix_product_flops, synchronized_time
from sft.common.text import size
from sft.modeling.state_copy import StateCopier, state_bytes
from sft.processes.device_memory import available_memory_bytes, memory_for_copy
from sft.processes.device_peaks import matmul_dtype

_COPIED = 2**32
"""Bytes that are copied, if there is room."""
_ALLOWED_TF32 = 2e-3
"""Relative error of a product in TF32, whose numbers have 10 bits after the point."""


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    yield Case(name="copy of a checkpoint to main memory", check=partial(_copy, bench))
    yield Case(name="tf32: true", check=partial(_tf32, bench))


def _copy(bench: Bench) -> Outcome:
    """Weights and optimizer state as layers have them: a few large tensors and many small ones, one of them tied."""
    room = min(memory_for_copy(bench.device, None), available_memory_bytes(bench.device)) // 2
    total = min(_COPIED if bench.on_gpu and not bench.is_quick else 2**26, room)
    width = 2048 if bench.on_gpu else 256
    layers = max(total // (4 * (4 * width * width + 2 * width)), 1)
    state = {
        f"layer.{number}": [torch.randn(4, width, width, device=bench.device)]
        + [torch.randn(width, device=bench.device) for _ in range(2)]
        for number in range(layers)
    }
    state["tied"] = state["layer.0"][:1]
    copier, copies = StateCopier(), dict[str, list[torch.Tensor]]()
    seconds = []
    for _ in range(2):  # the first one allocates
        copies = {}
        started = synchronized_time(bench.device)
        copies = copier.copy(state)
        bench.synchronize()
        seconds.append(synchronized_time(bench.device) - started)
    num_bytes = state_bytes(state)
    differ = sum(
        not torch.equal(copy, each.cpu())
        for name, tensors in state.items()
        for copy, each in zip(copies[name], tensors, strict=True)
    )
    speed = num_bytes / seconds[1]
    return judged(
        differ == 0 and copies["tied"][0].data_ptr() == copies["layer.0"][0].data_ptr(),
        f"{size(num_bytes)} in {seconds[1]:.2f} s: {speed / 1e9:.1f} GB/s; {differ} tensors differ",
        bytes=num_bytes,
        seconds=seconds,
        bytes_per_second=speed,
    )


def _tf32(bench: Bench) -> Outcome:
    """A run in float32 with `tf32: true` ends, and products then have TF32's accuracy."""
    if not bench.on_gpu:
        return skipped("of a GPU alone")
    if bench.capability < (8, 0):
        return skipped("a GPU of capability 8.0 or higher has it")
    before = matrix_product_flops(bench.device, torch.float32)
    rows = save_rows(bench, 8, (32,))
    model = save_small_model(bench)
    found = run(bench, "tf32", model, rows, tf32=True, bf16=False, max_steps=2, max_seq_length=64, save_strategy="no")
    after = matrix_product_flops(bench.device, torch.float32)
    torch.manual_seed(0)
    left, right = (torch.randn(1024, 1024, device=bench.device) for _ in range(2))
    exact = left.cpu().double() @ right.cpu().double()
    error = float(((left @ right).cpu().double() - exact).norm() / exact.norm())
    kind = matmul_dtype(False, False, torch.float32)
    return judged(
        kind == "tf32" and error <= _ALLOWED_TF32 and len(found.losses) == 2,
        f"{after / 1e12:.3g} TFLOP/s instead of {before / 1e12:.3g}; products are off by {error:.1e} "
        f"(at most {_ALLOWED_TF32:g})",
        flops_per_second=after,
        float32_flops_per_second=before,
        error=error,
    )
