"""How busy the devices are: shares between 0 and 1."""

from __future__ import annotations

import logging
import time

from sft.common.optional_packages import missing_package
from sft.processes.environment import num_usable_cores

logger = logging.getLogger("sft.train")


class CpuUtilization:
    """Share of the time since the last call in which this process kept its CPU cores busy."""

    def __init__(self) -> None:
        self._before = (time.perf_counter(), time.process_time())

    def read(self) -> float:
        """Between 0 and 1."""
        now = (time.perf_counter(), time.process_time())
        (since, busy_since), self._before = self._before, now
        return min((now[1] - busy_since) / max((now[0] - since) * num_usable_cores(), 1e-9), 1.0)


class GpuUtilization:
    """Share of the last moment in which the GPU was busy, by NVIDIA's management library; None where there is none."""

    def __init__(self, device: str):
        self._handle = None
        if not device.startswith("cuda"):
            return
        try:
            import pynvml  # optional
        except ImportError:
            logger.info("gpu_utilization is not logged: this %s.", missing_package("pynvml"))
            return
        import torch  # only where there is a GPU

        try:
            pynvml.nvmlInit()
            # The UUID is the same in both libraries; the index is not, where CUDA_VISIBLE_DEVICES hides some.
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self._pynvml = pynvml
        except (AttributeError, pynvml.NVMLError):
            self._handle = None  # Utilization is a courtesy: the run goes on, and the figure is left out.

    def read(self) -> float | None:
        """Between 0 and 1."""
        if self._handle is None:
            return None
        return self._pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
