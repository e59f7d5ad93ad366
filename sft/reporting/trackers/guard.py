"""Guards a run against its trackers: one that fails is switched off, and the run continues."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transformers import TrainerCallback

from sft.common.errors import one_line
from sft.processes.output import arguments_without_secrets

logger = logging.getLogger("sft.train")


class GuardedTracker(TrainerCallback):
    """Forwards the trainer's events, samples and results to a tracker, until it fails for the first time."""

    def __init__(self, name: str, create: Callable[[], Any]):
        """
        Args:
            name: as in `report_to`.
            create: creates the tracker, a trainer callback.
        """
        self.name = name
        self.problem: str | None = None
        """When and how it failed; None while it works."""
        self._arguments = arguments_without_secrets()
        self._tracker: Any = self._guarded("at startup", create)

    def _guarded(self, when: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the tracker, unless it has failed before; an exception switches it off.

        Args:
            when: for the log line.
            call: the tracker's method.
            args, kwargs: its arguments.
        """
        if self.problem is not None:
            return None
        arguments = sys.argv
        try:
            sys.argv = self._arguments  # trackers record them
            return call(*args, **kwargs)
        except Exception as error:
            self.problem = f"{when}: {type(error).__name__}: {one_line(error, longest=200)}"
            logger.info(
                "%s failed %s. The run continues without it; metrics.jsonl has all metrics.", self.name, self.problem
            )
            return None
        finally:
            sys.argv = arguments

    def forward(self, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Forwards an event of the trainer, `on_log` and so on."""
        return self._guarded(f"at step {state.global_step}", self._call, event, args, state, control, **kwargs)

    def _call(self, event: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._tracker, event)(*args, **kwargs)

    def add_samples(self, step: int, lines: Any) -> None:
        """See `install.Trackers.add_samples`; not every tracker shows samples."""
        if hasattr(self._tracker, "add_samples"):
            self._guarded(f"at step {step}", self._tracker.add_samples, step, lines)

    def finish(self, step: int, *result: Any) -> None:
        """See `install.Trackers.finish`. A tracker that failed releases what it holds."""
        if hasattr(self._tracker, "finish"):
            self._guarded("at the end", self._tracker.finish, step, *result)
        if self.problem is not None and hasattr(self._tracker, "abandon"):
            with suppress(Exception):  # it has failed before
                self._tracker.abandon()


def _forwarding(event: str) -> Callable[..., Any]:
    def method(self: GuardedTracker, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return self.forward(event, args, state, control, **kwargs)

    method.__name__ = event
    return method


# All events of the installed transformers. `__getattr__` would not be called, since TrainerCallback defines each event.
for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(GuardedTracker, _event, _forwarding(_event))


@contextmanager
def quiet_tracker_threads() -> Iterator[None]:
    """Suppresses tracebacks of TensorBoard's writer thread; its error is raised again at the next event."""
    usual = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(failure.exc_traceback)]
        if not any(name.startswith("tensorboard.") for name in names):
            usual(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual
