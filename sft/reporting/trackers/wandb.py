"""The Weights & Biases tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.integrations import WandbCallback

from sft.reporting.trackers.names import TOTALS, tracked

SAMPLE_COLUMNS = ("step", "prompt", "answer", "ended", "reference")


class WandbTracker(WandbCallback):
    """One wandb run, also after a resume; offline without an API key."""

    def __init__(self, description: Mapping[str, Mapping[str, Any]]):
        """
        Args:
            description: of the run, by topic.
        """
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

    def finish(self, step: int, result: Mapping[str, Any], picture: Path | None) -> None:
        if picture is not None:
            self._wandb.log({"run/curves": self._wandb.Image(str(picture)), "train/global_step": step})
        self._wandb.run.summary.update({"result": dict(result)})
        self._wandb.finish()

    def abandon(self) -> None:
        """Disconnects from wandb's process; if that died, Python's exit would fail with a traceback otherwise."""
        self._wandb.teardown()
