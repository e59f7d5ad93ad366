"""How busy the devices are: shares between 0 and 1."""

from __future__ import annotations

import logging

import psutil
import torch

from sft.common.errors import one_line
from sft.common.optional_packages import is_installed, missing_package
from sft.processes.environment import num_usable_cores

logger = logging.getLogger("sft.train")


class CpuUtilization:
    """Share of its CPU cores that this process kept busy since the previous call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.read()  # the first call only starts the clock

    def read(self) -> float | None:
        """Between 0 and 1; None if the system does not report it."""
        try:
            return min(self._process.cpu_percent() / 100 / num_usable_cores(), 1.0)
        except (psutil.Error, OSError):
            return None


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
        except Exception as error:  # of classes that the optional libraries define
            self._is_available = False
            logger.info("gpu_utilization is not logged from here on: %s.", one_line(error))
            return None
