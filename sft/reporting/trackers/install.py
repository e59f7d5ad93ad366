"""Installs our trackers in a trainer, in place of transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.integrations import get_reporting_integration_callbacks

from sft.reporting.trackers.guard import GuardedTracker
from sft.reporting.trackers.tensorboard import TensorBoardTracker
from sft.reporting.trackers.wandb import WandbTracker

if TYPE_CHECKING:
    from transformers import Trainer

Description = Mapping[str, Mapping[str, Any]]


class Trackers:
    """All trackers of a run; empty in every process but the first."""

    def __init__(self, trackers: Sequence[GuardedTracker] = ()):
        self._trackers = trackers

    def problems(self) -> dict[str, str | None]:
        """Tracker -> when and how it failed; None for one that works."""
        return {tracker.name: tracker.problem for tracker in self._trackers}

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Sends the answers to the sample prompts.

        Args:
            step: of the weights that generated the answers.
            lines: as in `samples.jsonl`.
        """
        for tracker in self._trackers:
            tracker.add_samples(step, lines)

    def finish(self, step: int, result: Mapping[str, Any], picture: Path | None) -> None:
        """Sends the results of the run, and closes the trackers.

        Args:
            step: the last.
            result: a table of values.
            picture: the curves, a PNG file; None if they were not drawn.
        """
        for tracker in self._trackers:
            tracker.finish(step, result, picture)


def install_trackers(
    trainer: "Trainer", description: Description, *, first_step: int, tensorboard_folder: str
) -> Trackers:
    """Replaces transformers' callback of each tracker in `report_to` by a guarded one: ours, or else theirs.

    Args:
        trainer: complete, not yet training.
        description: of the run, by topic (see `sft.reporting.trackers.run_text.describe_run`).
        first_step: the step that the run resumes from; 0 for a fresh start.
        tensorboard_folder: for the event files.
    """
    is_main_process = trainer.is_world_process_zero()
    ours = _our_trackers(description, first_step, tensorboard_folder) if is_main_process else {}
    trackers = []
    for name in trainer.args.report_to or ():
        (kind,) = get_reporting_integration_callbacks([name])
        theirs = trainer.pop_callback(kind)
        trackers.append(GuardedTracker(name, ours.get(name) or partial(_unchanged, theirs)))
        trainer.add_callback(trackers[-1])
    return Trackers(trackers if is_main_process else ())


def _unchanged(callback: Any) -> Any:
    return callback


def _our_trackers(description: Description, first_step: int, tensorboard_folder: str) -> dict[str, Callable[[], Any]]:
    """Name in `report_to` -> how to create the tracker."""
    return {
        "tensorboard": partial(TensorBoardTracker, description, first_step=first_step, folder=tensorboard_folder),
        "wandb": partial(WandbTracker, description),
    }
