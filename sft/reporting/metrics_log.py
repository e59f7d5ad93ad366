"""`metrics.jsonl`: one line per log event, each with its `step`; keys as in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft.common.files import json_safe, write_text
from sft.common.json_lines import read_and_log_dropped, read_json_lines
from sft.common.shapes import NUMBER
from sft.reporting.line_log import LineLog

_NUMBERS = (
    "epoch",
    "loss",
    "eval_loss",
    "loss_unweighted",
    "eval_loss_unweighted",
    "perplexity",
    "eval_perplexity",
    "token_accuracy",
    "eval_token_accuracy",
    "eval_sequence_accuracy",
    "eval_expert_max_share",
    "eval_expert_min_share",
    "eval_dead_experts",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "supervised_tokens_seen",
)
_LAYER = {"layer!": int, "experts!": int, "max_share!": NUMBER, "min_share!": NUMBER, "dead!": int}
METRICS_SHAPE = {"step!": int, **dict.fromkeys(_NUMBERS, NUMBER), "eval_expert_load": [_LAYER]}
"""What is read of an event; it has more."""


class MetricsLog:
    """Appends log events to a file. A resumed run continues after the step that it resumes from."""

    def __init__(
        self,
        path: str | Path,
        *,
        resume_step: int | None = None,
        num_evaluations: int | None = None,
        check: Callable[[], None] | None = None,
    ):
        """
        Args:
            path: the file.
            resume_step: keep the lines up to this step and remove later ones, which will be written again; None: start
                with an empty file.
            num_evaluations: evaluations at that step to keep, as the checkpoint counted them; later ones are repeated.
                None: all.
            check: see `LineLog`.
        """
        self.path = Path(path)
        kept: list[dict[str, Any]] = []
        if resume_step is not None and self.path.exists():
            found = read_and_log_dropped(self.path, METRICS_SHAPE)
            kept = [line for line in found if line["step"] <= resume_step and "train_runtime" not in line]
        evaluations = [line for line in kept if line["step"] == resume_step and "eval_loss" in line]
        if num_evaluations is not None:
            kept = [line for line in kept if line not in evaluations[num_evaluations:]]
        self._written_until = resume_step if resume_step is not None and kept else 0
        self._known = [set(line) for line in kept if line["step"] == resume_step and "eval_loss" not in line]
        """The keys of each event of that step that is in the file; evaluations are counted instead."""
        write_text(self.path, "".join(_as_line(line) for line in kept))
        self._lines = LineLog(self.path, check)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append an event, unless it is in the file: it is of the step that the run resumes from, or before."""
        event = {"step": step, **values}
        if step < self._written_until or (step == self._written_until and event.keys() in self._known):
            return
        self._lines.append(_as_line(event))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The events of a metrics file, without lines that a killed process has torn."""
    return read_json_lines(path, METRICS_SHAPE)[0]


def _as_line(event: Mapping[str, Any]) -> str:
    return json.dumps(json_safe(event)) + "\n"
