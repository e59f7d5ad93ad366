"""TensorBoard and wandb: all that is measured, in groups; what the run is; what the model says; the picture at the end.

Each takes the place of transformers' own callback, which it builds on. Other trackers are transformers' as they are.
None of them can end the run (see `tracker_guard`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers.integrations import (
    TensorBoardCallback,
    WandbCallback,
    get_reporting_integration_callbacks,
)

from sft.reporting.trackers.guard import GuardedTracker
from sft.reporting.trackers.names import CHARTS, TOTALS, tracked
from sft.reporting.trackers.run_text import as_code, as_table, sample_text

if TYPE_CHECKING:
    from transformers import Trainer

Description = Mapping[str, Mapping[str, Any]]
SAMPLE_COLUMNS = ("step", "prompt", "answer", "ended", "reference")


class TensorBoardTracker(TensorBoardCallback):
    """One event file a start; a run that goes on shows no step twice."""

    def __init__(self, description: Description, *, first_step: int, folder: str):
        """Args:
        description: what the run is, by topic.
        first_step: the step that the run goes on from; what the files hold behind it is written again.
        folder: where the event files go.
        """
        from torch.utils.tensorboard import SummaryWriter

        purge = {"purge_step": first_step + 1} if first_step else {}
        super().__init__(SummaryWriter(log_dir=folder, **purge))
        self.writer = self.tb_writer
        self.writer.add_custom_scalars({"curves": {title: ["Multiline", list(tags)] for title, tags in CHARTS.items()}})
        for topic, values in description.items():
            text = as_code(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))
            self.writer.add_text(f"run/{topic}", text if topic == "configuration" else as_table(values), first_step)
        self.writer.flush()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves out transformers' own text: what the run is stands there already."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any) -> None:
        for tag, value in tracked(logs or {}):
            self.writer.add_scalar(tag, value, state.global_step)
        self.writer.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the file open: the last evaluation and the samples are still to come."""

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        for number, line in enumerate(lines, start=1):
            text = sample_text(line["prompt"], line["answer"], line["ended"], line["reference"])
            self.writer.add_text(f"samples/{number}", text, step)
        self.writer.flush()

    def finish(self, step: int, result: Mapping[str, Any], picture: Path) -> None:
        from matplotlib.image import imread

        self.writer.add_text("run/result", as_table(result), step)
        self.writer.add_image("run/curves", imread(picture)[..., :3], step, dataformats="HWC")
        self.writer.close()


class WandbTracker(WandbCallback):
    """One run, also where it goes on; offline where there is no key."""

    def __init__(self, description: Description):
        super().__init__()
        self._description = description

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        super().setup(args, state, model, **kwargs)
        if state.is_world_process_zero:
            self._wandb.config.update({"sft": dict(self._description)}, allow_val_change=True)

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: Mapping[str, Any] | None = None, **kw: Any
    ) -> None:
        if not self._initialized:
            self.setup(args, state, model)
        logs = logs or {}
        for name in TOTALS:
            if name in logs:
                self._wandb.run.summary[name] = logs[name]
        values = dict(tracked(logs))
        if values:
            self._wandb.log({**values, "train/global_step": state.global_step})

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        table = self._wandb.Table(
            columns=list(SAMPLE_COLUMNS), data=[[line[name] for name in SAMPLE_COLUMNS] for line in lines]
        )
        self._wandb.log({"samples/answers": table, "train/global_step": step})

    def finish(self, step: int, result: Mapping[str, Any], picture: Path) -> None:
        self._wandb.log({"run/curves": self._wandb.Image(str(picture)), "train/global_step": step})
        self._wandb.run.summary.update({"result": dict(result)})
        self._wandb.finish()

    def abandon(self) -> None:
        """Lets go of wandb's process: one that is gone would be missed again, with a traceback, when Python ends."""
        self._wandb.teardown()


class Trackers:
    """All trackers of ours that a run writes to; none of them in other processes than the first."""

    def __init__(self, trackers: Sequence[GuardedTracker] = ()):
        self._trackers = trackers

    def problems(self) -> dict[str, str | None]:
        """Tracker -> what made it fail, and when; None for one that works."""
        return {tracker.name: tracker.problem for tracker in self._trackers}

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Shows what the model said.

        Args:
            step: of the weights that answered.
            lines: as in `samples.jsonl`.
        """
        for tracker in self._trackers:
            tracker.tell_of_samples(step, lines)

    def finish(self, step: int, result: Mapping[str, Any], picture: Path) -> None:
        """Writes what came of the run, and all that trackers still hold.

        Args:
            step: the last.
            result: a table of values.
            picture: the curves, a PNG file.
        """
        for tracker in self._trackers:
            tracker.finish(step, result, picture)


def install_trackers(
    trainer: "Trainer", description: Description, *, first_step: int, tensorboard_folder: str
) -> Trackers:
    """Puts our TensorBoard and wandb into the place of transformers' own.

    Args:
        trainer: put together, not yet training.
        description: what the run is, by topic (see `sft.reporting.trackers.run_text.describe_run`).
        first_step: the step that the run goes on from, 0 for a fresh start.
        tensorboard_folder: where its event files go.
    """
    ours: dict[str, Callable[[], Any]] = {}
    if trainer.is_world_process_zero():
        ours["tensorboard"] = partial(TensorBoardTracker, description, first_step=first_step, folder=tensorboard_folder)
        ours["wandb"] = partial(WandbTracker, description)
    trackers = []
    for name in trainer.args.report_to:
        (kind,) = get_reporting_integration_callbacks([name])
        theirs = trainer.pop_callback(kind)
        trackers.append(GuardedTracker(name, ours.get(name, partial(_as_it_is, theirs))))
        trainer.add_callback(trackers[-1])
    return Trackers(trackers if trainer.is_world_process_zero() else ())


def _as_it_is(callback: Any) -> Any:
    return callback
