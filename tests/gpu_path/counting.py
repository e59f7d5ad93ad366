"""In a process with the fake library: what was counted, and the line of Python that each counted call came from."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any

from tests.support.paths import REPOSITORY

EVENTS = ("launches", "captures", "replays", "synchronizations", "waits", "pageable_to_device", "pageable_to_host")
"""In the order of `enum event` in device.h."""
BLOCKING = ("synchronizations", "pageable_to_device", "pageable_to_host")
"""During which the process waits for the device. `waits` are those for an event, which may have happened long ago."""


@cache
def library() -> ctypes.CDLL:
    """The fake library, which was loaded before all others."""
    return ctypes.CDLL(os.environ["LD_PRELOAD"])


class Counting:
    """Counts calls from `start` to `stop`."""

    def __init__(self) -> None:
        self._counts = (ctypes.c_long * len(EVENTS)).in_dll(library(), "fake_cuda_counts")
        self._observer = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._observe)
        library().fake_cuda_observe(self._observer)
        self._before: list[int] = []
        self._lines: Counter[str] = Counter()

    def start(self) -> None:
        self._before, self._lines = list(self._counts), Counter()

    def stop(self) -> dict[str, Any]:
        """The number of each event, and `lines`: how often which line of Python made the process wait."""
        before, self._before = self._before, []
        found: dict[str, Any] = {name: self._counts[n] - before[n] for n, name in enumerate(EVENTS)}
        return {**found, "lines": dict(self._lines)}

    def _observe(self, event: int) -> None:
        if self._before:
            self._lines[f"{EVENTS[event]}: {_caller(sys._getframe().f_back)}"] += 1


def _caller(frame: FrameType | None) -> str:
    """The line that called a library, and the line in the library; `no line of Python` in torch's own threads."""
    innermost = frame
    while frame is not None and not _is_own(frame):
        frame = frame.f_back
    lines = [_line(each) for each in (frame, innermost) if each is not None]
    return " <- ".join(dict.fromkeys(lines)) or "no line of Python"


def _is_own(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(str(REPOSITORY)) and "site-packages" not in frame.f_code.co_filename


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.removeprefix(f'{REPOSITORY}/').rpartition('site-packages/')[2]}:{frame.f_lineno}"


def counted(function: Callable[[], Any]) -> dict[str, Any]:
    """What a call causes."""
    counting = Counting()
    counting.start()
    function()
    return counting.stop()
