"""A tracker that fails is left out from then on: what is written about a run never ends it."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from transformers import TrainerCallback

from sft.common.errors import one_line

logger = logging.getLogger("sft.train")


class GuardedTracker(TrainerCallback):
    """Passes the trainer's events, and what else a tracker is told, on to it until it fails for the first time."""

    def __init__(self, name: str, make: Callable[[], Any]):
        """Args:
        name: as in `report_to`.
        make: makes the tracker, a callback of the trainer.
        """
        self.name = name
        self.problem: str | None = None
        """What made it fail, and when; None while it works."""
        self._tracker: Any = None
        self.tell("at its begin", self._make, make)

    def _make(self, make: Callable[[], Any]) -> None:
        self._tracker = make()

    def tell(self, when: str, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the tracker, unless it has failed before; whatever it raises is its own affair.

        Args:
            when: for a person.
            do: the method.
            args, kwargs: its arguments.
        """
        if self.problem is not None:
            return None
        try:
            return do(*args, **kwargs)
        except Exception as error:
            self.problem = f"{when}: {type(error).__name__}: {one_line(error, longest=200)}"
            logger.info("%s failed %s; the run goes on without it, and metrics.jsonl has everything.",
                        self.name, self.problem)  # fmt: skip
            return None

    def tell_of_samples(self, step: int, lines: Any) -> None:
        """See `trackers.Trackers.add_samples`; not every tracker shows them."""
        if hasattr(self._tracker, "add_samples"):
            self.tell(f"at step {step}", self._tracker.add_samples, step, lines)

    def finish(self, step: int, *result: Any) -> None:
        """See `trackers.Trackers.finish`. One that failed lets go of what it holds."""
        if hasattr(self._tracker, "finish"):
            self.tell("at its end", self._tracker.finish, step, *result)
        if self.problem is not None and hasattr(self._tracker, "abandon"):
            with suppress(Exception):  # it has failed before
                self._tracker.abandon()


def _passed_on(event: str) -> Any:
    def method(self: GuardedTracker, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        when = f"at step {state.global_step}"
        return self.tell(when, lambda: getattr(self._tracker, event)(args, state, control, **kwargs))

    method.__name__ = event
    return method


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(GuardedTracker, _event, _passed_on(_event))


@contextmanager
def quiet_tracker_threads() -> Iterator[None]:
    """Keeps a traceback of TensorBoard's writing thread out of the log: the same error comes up at the next event."""
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
