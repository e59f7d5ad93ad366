"""What this machine lacks, as far as it is certain without importing torch, which takes seconds."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from importlib import import_module
from pathlib import Path

from sft.common.machine_records import MachineFacts
from sft.common.optional_packages import is_installed
from sft.processes.environment import (
    has_gpu_of_its_own,
    is_launched,
    launched_world_size,
    num_processes_here,
    num_usable_cores,
)

_DEVICE_FILES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
"""In /dev, of NVIDIA's driver (on a Jetson nvhost or nvmap), of AMD's, and of either in WSL."""
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_BFLOAT16_CAPABILITY = 8
"""Least major compute capability of NVIDIA's GPUs with bfloat16 (CUDA C++ Programming Guide)."""


def look_at_machine(*, asks_bfloat16: bool, asks_compiler: bool) -> MachineFacts:
    """The machine of this process.

    Args:
        asks_bfloat16: also find out whether the GPUs lack bfloat16.
        asks_compiler: also find out what torch.compile would lack.
    """
    most_gpus = find_most_gpus()
    return MachineFacts(
        most_gpus=most_gpus,
        num_cores=num_usable_cores(),
        is_launched=is_launched(),
        world_size=launched_world_size(),
        processes_here=num_processes_here(launched_world_size()),
        has_gpu_of_its_own=has_gpu_of_its_own(),
        lacks_bfloat16=asks_bfloat16 and most_gpus != 0 and _gpus_lack_bfloat16(),
        missing_to_compile={gpu: _missing_to_compile(on_gpu=gpu) for gpu in (False, True) if asks_compiler},
    )


def find_most_gpus() -> int | None:
    """The number of GPUs that torch can find at most, 0 where there certainly is none; None if it is not known."""
    if not _torch_supports_gpus():
        return 0
    bounds = [len(list(_indices(os.environ[name]))) for name in _VISIBLE if name in os.environ]
    if sys.platform == "linux":
        found = [path.name for pattern in _DEVICE_FILES for path in Path("/dev").glob(pattern)]
        if not found and not _has_driver():
            return 0
        numbered = [name for name in found if re.fullmatch(r"nvidia\d+", name)]
        bounds += [len(numbered)] if numbered else []
    return min(bounds, default=None)


def _has_driver() -> bool:
    """Whether a GPU driver can be loaded although /dev shows no device, as in some sandboxes."""
    for name in ("libcuda.so.1", "libamdhip64.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _indices(visible: str) -> list[str]:
    """The devices of a variable like CUDA_VISIBLE_DEVICES: those before the first that is not valid."""
    devices = [device.strip() for device in visible.split(",")]
    invalid = next((n for n, device in enumerate(devices) if not device or device.startswith("-")), len(devices))
    return devices[:invalid]


def _torch_supports_gpus() -> bool:
    """False if the installed torch is a build for CPUs only, which it states in `torch/version.py`."""
    spec = importlib.util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder, "version.py")
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        builds = dict(re.findall(r"^(cuda|hip)\b[^=\n]*= *(.+)$", text, flags=re.MULTILINE))
        if builds and all(value.strip() == "None" for value in builds.values()):
            return False
    return True


def _gpus_lack_bfloat16() -> bool:
    """Whether no GPU of this machine has bfloat16, by NVIDIA's management library; False if that is not known."""
    if not is_installed("pynvml"):
        return False
    try:
        library = import_module("pynvml")
        library.nvmlInit()
        handles = [library.nvmlDeviceGetHandleByIndex(number) for number in range(library.nvmlDeviceGetCount())]
        capabilities = [library.nvmlDeviceGetCudaComputeCapability(handle)[0] for handle in handles]
    except Exception:  # of classes that the optional library defines: torch answers later
        return False
    return bool(capabilities) and max(capabilities) < _BFLOAT16_CAPABILITY


def _missing_to_compile(*, on_gpu: bool) -> str | None:
    """What torch.compile (its backend inductor) needs and does not find; None if nothing.

    On CPU torch runs `CXX` or g++; on GPUs Triton runs `CC`, gcc or clang. Both include Python's headers.
    """
    if sys.platform == "win32" or os.environ.get("TORCH_INDUCTOR_INSTALL_GXX"):
        return None
    default = "clang++" if sys.platform == "darwin" else "g++"
    if on_gpu:
        if not is_installed("triton"):
            return "the package triton (pip install triton)"
        names, what = ([os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]), "a C compiler (gcc, or CC)"
    else:
        names, what = [os.environ.get("CXX", default)], f"a C++ compiler ({default}, or CXX)"
    if not any(shutil.which(name) for name in names):
        return what
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform == "linux" and not header.is_file():
        return f"Python's headers ({header}: install python3-dev)"
    return None
