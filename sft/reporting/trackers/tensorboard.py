"""The TensorBoard tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers.integrations import TensorBoardCallback

from sft.common.markdown import fenced
from sft.reporting.trackers.names import CHARTS, tracked
from sft.reporting.trackers.run_text import as_table, sample_text


class TensorBoardTracker(TensorBoardCallback):
    """One event file per start; after a resume, no step appears twice."""

    def __init__(self, description: Mapping[str, Mapping[str, Any]], *, first_step: int, folder: str):
        """
        Args:
            description: of the run, by topic.
            first_step: the step that the run resumes from; later steps in older event files are hidden.
            folder: for the event files.
        """
        from torch.utils.tensorboard import SummaryWriter  # optional: needs tensorboard

        purge = {"purge_step": first_step + 1} if first_step else {}
        super().__init__(SummaryWriter(log_dir=folder, **purge))
        self.writer = self.tb_writer
        self.writer.add_custom_scalars({"curves": {title: ["Multiline", list(tags)] for title, tags in CHARTS.items()}})
        for topic, values in description.items():
            self._add_text(f"run/{topic}", _topic_text(topic, values), first_step)
        self.writer.flush()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skips transformers' own text: the run is described already."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any) -> None:
        for tag, value in tracked(logs or {}):
            self.writer.add_scalar(tag, value, state.global_step)
        self.writer.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the file open for the last evaluation and the samples."""

    def add_samples(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        for number, line in enumerate(lines, start=1):
            text = sample_text(line["prompt"], line["answer"], line["ended"], line["reference"])
            self._add_text(f"samples/{number}", text, step)
        self.writer.flush()

    def finish(self, step: int, result: Mapping[str, Any], picture: Path | None) -> None:
        self._add_text("run/result", as_table(result), step)
        if picture is not None:
            from matplotlib.image import imread  # optional package, which drew the picture

            self.writer.add_image("run/curves", imread(picture)[..., :3], step, dataformats="HWC")
        self.writer.close()

    def _add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a text; bytes of paths that are not UTF-8, which an event file cannot hold, are written out."""
        self.writer.add_text(tag, text.encode("utf-8", "backslashreplace").decode("utf-8"), step)


def _topic_text(topic: str, values: Mapping[str, Any]) -> str:
    if topic == "configuration":
        return fenced(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip(), "yaml")
    return as_table(values)
