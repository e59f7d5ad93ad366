"""The machine: versions, the GPU, NVIDIA's management library, the compiler, and a matrix product."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from sft.check_gpu.bench import Bench
from sft.check_gpu.outcome import Case, Outcome, judged, skipped
from sft.check_gpu.step_timing import matrix_product_flops
from sft.common.optional_packages import is_installed, missing_package
from sft.common.text import size
from sft.modeling.precision import has_bfloat16
from sft.processes.device_memory import available_memory_bytes, total_memory_bytes
from sft.processes.device_peaks import device_peak_flops
from sft.processes.machine import look_at_machine
from sft.processes.utilization import GpuUtilization

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "triton", "nvidia-ml-py")
_SHARE_OF_PEAK = (0.4, 1.1)
"""Of the data sheet, that a large matrix product reaches: a card that reaches less is throttled or shared, and one that
reaches more does not compute."""


def cases(bench: Bench) -> Iterator[Case]:
    """The checks."""
    yield Case(name="versions", check=partial(_versions, bench))
    yield Case(name="device", check=partial(_device, bench))
    yield Case(name="memory", check=partial(_memory, bench))
    yield Case(name="utilization (NVML)", check=partial(_utilization, bench))
    yield Case(name="compiler", check=partial(_compiler, bench))
    yield Case(name="matrix product", check=partial(_product, bench))
    yield Case(name="matrix product, accuracy", check=partial(_accuracy, bench))


def _versions(bench: Bench) -> Outcome:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if bench.on_gpu:
        found |= {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}
    return judged(True, ", ".join(f"{name} {each}" for name, each in found.items()), **found)


def _device(bench: Bench) -> Outcome:
    if not bench.on_gpu:
        return judged(True, f"cpu, {torch.get_num_threads()} threads", name="cpu")
    major, minor = bench.capability
    properties = torch.cuda.get_device_properties(bench.device)
    types = "bfloat16" if has_bfloat16(bench.device) else "no bfloat16: runs use float16"
    kernel = bench.kernel
    rows = "a kernel for packed rows" if kernel is None or kernel.obstacle is None else kernel.obstacle
    return judged(
        major > 0,
        f"{properties.name}, capability {major}.{minor}, {properties.multi_processor_count} multiprocessors; {types}; "
        f"{rows}; {bench.num_gpus} visible",
        name=properties.name,
        capability=f"{major}.{minor}",
        multiprocessors=properties.multi_processor_count,
        visible=bench.num_gpus,
    )


def _memory(bench: Bench) -> Outcome:
    total, free = total_memory_bytes(bench.device), available_memory_bytes(bench.device)
    return judged(0 < free <= total, f"{size(free)} of {size(total)} are free", total_bytes=total, free_bytes=free)


def _utilization(bench: Bench) -> Outcome:
    if not bench.on_gpu:
        return skipped("of a GPU")
    package = "amdsmi" if torch.version.hip else "pynvml"
    if not is_installed(package):
        return skipped(f"gpu_utilization is not logged: this {missing_package(package)}")
    share = GpuUtilization(bench.device).read()
    if share is None:
        return judged(False, "the library reports no figure; runs do not log gpu_utilization")
    return judged(0 <= share <= 1, f"{share:.0%} now", utilization=share)


def _compiler(bench: Bench) -> Outcome:
    missing = look_at_machine(asks_bfloat16=False, asks_compiler=True).missing_to_compile[bench.on_gpu]
    return skipped(f"torch_compile needs {missing}") if missing else judged(True, "torch_compile finds what it needs")


def _product(bench: Bench) -> Outcome:
    dtype = torch.float32 if not bench.on_gpu else torch.bfloat16 if has_bfloat16(bench.device) else torch.float16
    name = str(dtype).removeprefix("torch.")
    flops = matrix_product_flops(bench.device, dtype)
    figures = {"dtype": name, "flops_per_second": flops}
    peak = device_peak_flops(bench.device, name)
    if peak is None:
        return judged(flops > 0, f"{flops / 1e12:.3g} TFLOP/s in {name}; no data sheet is known", **figures)
    share = flops / peak
    least, most = _SHARE_OF_PEAK
    text = f"{flops / 1e12:.3g} TFLOP/s in {name}, {share:.0%} of the data sheet (at least {least:.0%})"
    return judged(least <= share <= most, text, share_of_peak=share, **figures)


def _accuracy(bench: Bench) -> Outcome:
    torch.manual_seed(0)
    left, right = (torch.randn(512, 512, device=bench.device) for _ in range(2))
    exact = left.cpu().double() @ right.cpu().double()
    error = float(((left @ right).cpu().double() - exact).norm() / exact.norm())
    return judged(error < 1e-5, f"float32 is off by {error:.1e} (at most 1e-05)", error=error)
