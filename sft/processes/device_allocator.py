"""torch's allocator of GPU memory: segments that grow, so that freed memory can be used again in any size.

By default, the allocator requests each larger block from the driver as a segment of its own, and what is freed in one
segment cannot extend a block in another: it stays reserved without being usable. An expandable segment is a range of
addresses to which the driver maps memory page by page. Affects memory, not results.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys

import torch

from sft.common.device_errors import is_out_of_memory
from sft.common.errors import one_line

logger = logging.getLogger("sft.train")
_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""In the order in which torch reads them. Only the last one is current; torch 2.9 and 2.10 warn about the first."""
_SETTING = "expandable_segments:{}"
# Names and numbers of CUDA's cuda.h.
_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 102, 103


def use_expandable_segments(device: str) -> None:
    """Make the allocator use expandable segments, unless the user configured it. To be called before it is used.

    Args:
        device: of this process.
    """
    if not device.startswith("cuda") or allocator_settings(device) is not None:
        return
    obstacle = _obstacle(torch.device(device).index or 0)
    if obstacle is None:
        configure = torch._C._accelerator_setAllocatorSettings  # torch may have read the variable already
        configure(_SETTING.format(True))
        obstacle = _why_allocation_fails(device)
        if obstacle is not None:
            configure(_SETTING.format(False))
    if obstacle is not None:
        logger.info("GPU memory: the allocator keeps its default, without expandable segments: %s.", obstacle)
        return
    os.environ[_VARIABLES[-1]] = _SETTING.format(True)  # read by `allocator_settings`
    logger.info(
        "GPU memory: the allocator uses expandable segments, which avoid fragmentation (%s=%s turns them off).",
        _VARIABLES[-1],
        _SETTING.format(False),
    )


def allocator_settings(device: str) -> str | None:
    """The settings of the GPU allocator, the user's or ours; None for torch's defaults, and on CPU."""
    if not device.startswith("cuda"):
        return None
    return next((os.environ[name] for name in _VARIABLES if name in os.environ), None)


def _obstacle(index: int) -> str | None:
    """Why the device with this index cannot map memory page by page; None if the driver says that it can."""
    if not sys.platform.startswith("linux") or "microsoft" in platform.release().lower():
        return "they need Linux, and not inside Windows"
    if torch.version.hip is not None or not hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        return "this build of torch does not support them"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        ctypes.CDLL("libnvidia-ml.so.1")  # without it, torch 2.13 crashes at the first expandable segment
    except OSError as error:
        return f"a library of the driver was not found ({one_line(error)})"
    handle, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), index):
        return "the driver does not answer"
    for attribute in (_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle) or not value.value:
            return "the driver does not support them on this GPU"
    return None


def _why_allocation_fails(device: str) -> str | None:
    """Why a first allocation fails, if it does; a device without free memory is no reason."""
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:
        return None if is_out_of_memory(error) else f"a first allocation failed ({one_line(error)})"
    return None
