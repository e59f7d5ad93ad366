"""What tests let processes with fake devices do: each function is called by `FakeCuda.call`."""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from tests.gpu_path.large_models import measure_memory  # noqa: F401  (called by name)


def describe() -> dict[str, Any]:
    """What torch finds."""
    return {
        "devices": torch.cuda.device_count(),
        "name": torch.cuda.get_device_name(0),
        "capability": torch.cuda.get_device_capability(0),
        "total": torch.cuda.get_device_properties(0).total_memory,
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def copy_and_compute() -> list[list[float]]:
    """What comes back from a device: a copy, and the result of a kernel."""
    copied = torch.tensor([1.0, 2.0], device="cuda")
    cloned = copied.clone()  # kept: its memory would be used again, and what was copied there is still known
    return [copied.tolist(), cloned.tolist(), (copied + 1).tolist()]


def exceed_memory(num_mib: int) -> dict[str, Any]:
    """Takes memory a MiB above a limit, then memory below it."""
    try:
        torch.empty((num_mib + 1) << 20, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        message = str(error)
    kept = torch.empty((num_mib - 64) << 20, dtype=torch.uint8, device="cuda")
    return {"message": message, "kept_mib": kept.numel() >> 20, "free_mib": torch.cuda.mem_get_info()[0] >> 20}


def grow_and_shrink() -> list[int]:
    """MiB that torch's allocator has reserved, and that the device has given away, with tensors and without them."""
    before = torch.cuda.mem_get_info()[0]
    tensors = [torch.empty(30 << 20, dtype=torch.uint8, device="cuda") for _ in range(5)]
    found = [torch.cuda.memory_reserved(), before - torch.cuda.mem_get_info()[0]]
    del tensors
    torch.cuda.empty_cache()
    found += [torch.cuda.memory_reserved(), before - torch.cuda.mem_get_info()[0]]
    return [size >> 20 for size in found]


def count_calls() -> dict[str, dict[str, Any]]:
    """What is counted in some calls."""
    from tests.gpu_path.counting import counted

    on_device, in_memory = torch.zeros(8, device="cuda"), torch.zeros(8)
    pinned = in_memory.pin_memory()
    return {
        "kernel": counted(lambda: on_device + 1),
        "item": counted(lambda: on_device[0].item()),
        "pageable": counted(lambda: in_memory.to("cuda", non_blocking=True)),
        "pinned": counted(lambda: pinned.to("cuda", non_blocking=True)),
        "event": counted(lambda: torch.cuda.Event().synchronize()),
    }


def compile_function() -> list[int]:
    """Compiled by Inductor and Triton; the shape of what a launch returns."""
    compiled = torch.compile(lambda tensor: torch.nn.functional.silu(tensor) * tensor)
    return list(compiled(torch.zeros(16, 32, device="cuda")).shape)


def attend() -> dict[str, str]:
    """What attention within documents does with several arguments: `ok`, or the first line of its error."""
    cases: dict[str, dict[str, Any]] = {
        "grouped heads": {},
        "one document": {"documents": 1},
        "512 documents": {"documents": 512},
        "empty documents": {"boundaries": [0, 512, 1024, 1024, 1024]},
        "heads of 80": {"head_size": 80},
        "heads of 256": {"head_size": 256},
        "heads of 264": {"head_size": 264},
        "heads of 20": {"head_size": 20},
        "float32": {"dtype": torch.float32},
        "boundaries in 64 bits": {"boundaries_dtype": torch.int64},
        "boundaries in main memory": {"boundaries_device": "cpu"},
        "deterministic": {"is_deterministic": True},
    }
    return {name: _attend(**case) for name, case in cases.items()}


def _attend(
    *,
    documents: int = 2,
    head_size: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    boundaries: list[int] | None = None,
    boundaries_dtype: torch.dtype = torch.int32,
    boundaries_device: str = "cuda",
    is_deterministic: bool = False,
) -> str:
    tokens = 1024
    ends = boundaries or list(range(0, tokens + 1, tokens // documents))
    query, key, value = (
        torch.zeros(1, heads, tokens, head_size, device="cuda", dtype=dtype, requires_grad=True) for heads in (8, 2, 2)
    )
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        starts = torch.tensor(ends, dtype=boundaries_dtype, device=boundaries_device)
        longest = max(end - start for start, end in pairwise(ends))
        # Not contiguous, as a model's layers have them.
        rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        groups = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        attended = varlen_attn(*rows, starts, starts, longest, longest, window_size=(-1, 0), **groups)
        attended.sum().backward()
        return "ok" if attended.shape == (tokens, 8, head_size) else f"shape {tuple(attended.shape)}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
