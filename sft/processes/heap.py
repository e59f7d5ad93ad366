"""The C library's heap: keeping freed memory for the next step, where that makes training on CPU faster.

A training step frees its activations and the next one asks for as much again. glibc gives large blocks back to the
system at once and gets them anew, page by page, each of them cleared: on CPU about a quarter of a step. Told not to
(mallopt(3)), it hands out the same memory again. The process then holds its peak until it ends, and holes between
blocks can make that peak higher.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import Literal

logger = logging.getLogger("sft.train")
# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 2**28
"""The heap grows by so much at a time."""


def reuse_freed_memory(wanted: bool | Literal["auto"], device: str) -> bool:
    """Makes the heap keep what is freed, if that is wanted; returns whether it does.

    Args:
        wanted: `auto` for training on CPU only; on a GPU activations are not on this heap.
        device: of this process.
    """
    if wanted is False or (wanted == "auto" and device != "cpu"):
        return False
    mallopt = _mallopt()
    done = mallopt is not None and all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, TOP_PAD_BYTES))
    )
    if not done and wanted is True:
        logger.info("reuse_freed_memory has no effect: this system's C library would not, or is not glibc.")
    return done


def give_back_freed_memory() -> None:
    """Gives what is free on the heap back to the system, once; does nothing where the C library is not glibc."""
    if _mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt():
    """glibc's `mallopt(int, int) -> int` (1: done); None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return library.mallopt
