"""glibc's heap: keep freed memory for the next step, which makes training on CPU faster.

A training step frees its activations and the next one allocates as much again. By default, glibc returns large blocks
to the system at once and requests them again, page by page, each page zeroed: on CPU about a quarter of a step. With
mallopt(3) it reuses the same memory. The process then keeps its peak memory until it ends, and fragmentation can make
that peak higher.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections.abc import Callable
from typing import Literal

logger = logging.getLogger("sft.train")
# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 2**28
"""By how much the heap grows at a time."""


def reuse_freed_memory(wanted: bool | Literal["auto"], device: str) -> bool:
    """Make the heap keep freed memory, if requested; return whether it does.

    Args:
        wanted: `auto` means on CPU only; on a GPU activations are not on this heap.
        device: of this process.
    """
    if not _is_wanted(wanted, device):
        return False
    mallopt = _mallopt()
    done = mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, TOP_PAD_BYTES))
    )
    if not done and wanted is True:
        logger.info("reuse_freed_memory has no effect: this system's C library is not glibc, or refused it.")
    return done


def keeps_freed_memory(wanted: bool | Literal["auto"], device: str) -> bool:
    """Whether `reuse_freed_memory` has an effect: it is requested or suits the device, and the C library is glibc."""
    return _is_wanted(wanted, device) and _mallopt() is not None


def release_freed_memory() -> None:
    """Return free heap memory to the system, once; does nothing if the C library is not glibc."""
    if _mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def _is_wanted(wanted: bool | Literal["auto"], device: str) -> bool:
    return wanted is True or (wanted == "auto" and device == "cpu")


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's `mallopt(option, value)`, which returns 1 on success; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return library.mallopt
