"""How busy the devices are: shares between 0 and 1."""

from __future__ import annotations

import logging

import psutil
import torch

from sft.common.optional_packages import is_installed, missing_package
from sft.processes.environment import num_usable_cores

logger = logging.getLogger("sft.train")


class CpuUtilization:
    """Share of its CPU cores that this process kept busy since the previous call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock

    def read(self) -> float:
        """Between 0 and 1."""
        return min(self._process.cpu_percent() / 100 / num_usable_cores(), 1.0)


class GpuUtilization:
    """Share of the last sampling period in which the GPU was busy.

    Reported by NVIDIA's management library (the package nvidia-ml-py) or AMD's (amdsmi), if it is installed.
    """

    def __init__(self, device: str):
        self._device = device
        package = "amdsmi" if torch.version.hip else "pynvml"
        self._is_available = device.startswith("cuda") and is_installed(package)
        if device.startswith("cuda") and not self._is_available:
            logger.info("gpu_utilization is not logged: this %s.", missing_package(package))

    def read(self) -> float | None:
        """Between 0 and 1; None if it is not available."""
        if not self._is_available:
            return None
        try:
            return torch.cuda.utilization(self._device) / 100
        except Exception:  # of classes that the optional libraries define; the metric is omitted, the run continues
            self._is_available = False
            return None
