"""What the checks of a section work with: the device, a folder, sizes that suit the device, runs and trainers."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from sft.check_gpu.options import CheckOptions
from sft.check_gpu.sections import SECTIONS
from sft.check_gpu.shapes import SHAPES, Shape
from sft.modeling.varlen_kernel import VarlenKernel, find_kernel
from sft.processes.device_allocator import use_expandable_segments


class Bench:
    """The device of a section's process, and the sizes of its checks."""

    def __init__(
        self,
        device: str,
        folder: Path,
        *,
        is_quick: bool,
        full_determinism: bool = False,
        backend: str | None = None,
    ):
        """
        Args:
            device: `cuda:0` or `cpu`.
            folder: for models, rows and output folders.
            is_quick: small sizes.
            full_determinism: whether the runs of this process set it.
            backend: `ddp_backend` of runs of several processes; None for their default.
        """
        self.device = device
        self.folder = folder
        self.is_quick = is_quick
        self.full_determinism = full_determinism
        self.backend = backend
        self.num_gpus = torch.cuda.device_count() if self.on_gpu else 0
        """Before a run hides all but one."""

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def capability(self) -> tuple[int, int]:
        """The GPU's compute capability; (0, 0) on a CPU."""
        return torch.cuda.get_device_capability() if self.on_gpu else (0, 0)

    @property
    def kernel(self) -> VarlenKernel | None:
        """The kernel for packed rows; None on a CPU, which has none."""
        return find_kernel(torch.device(self.device))

    @property
    def small_shape(self) -> Shape:
        """Of the models whose training is compared."""
        return SHAPES["100m" if self.on_gpu else "toy"]

    def small_length(self, on_gpu: int, on_cpu: int) -> int:
        """A number of tokens or rows that suits the device."""
        return on_gpu if self.on_gpu else on_cpu

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def release_memory(self) -> None:
        """Return what no tensor uses to the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        """Start to measure `peak_bytes`."""
        self.release_memory()
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """The most memory that torch has reserved on the GPU since `reset_peak`; 0 on a CPU."""
        return torch.cuda.max_memory_reserved() if self.on_gpu else 0


def open_bench(section: str, options: CheckOptions) -> Bench | None:
    """The bench of a section; None if there is no GPU, and one is asked for."""
    if options.device == "cuda" and not torch.cuda.is_available():
        return None
    assert options.folder is not None  # given by `supervise`
    device = "cpu" if options.device == "cpu" else "cuda:0"
    use_expandable_segments(device)  # as a run does, before anything is allocated
    return Bench(
        device,
        Path(options.folder),
        is_quick=options.is_quick,
        full_determinism=SECTIONS[section].full_determinism,
        backend=options.backend,
    )
