"""Threads that allocate much memory beside the main thread."""

from __future__ import annotations

import threading

CHECKPOINT_THREAD = "checkpoint"


def checkpoint_thread_exists() -> bool:
    """Whether this process has a thread that writes checkpoints."""
    return any(thread.name.startswith(CHECKPOINT_THREAD) for thread in threading.enumerate())
