"""`samples.jsonl`: one line per answer to a sample prompt, with the step whose weights generated it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sft.common.files import write_text
from sft.common.json_lines import read_and_log_dropped
from sft.reporting.line_log import LineLog

SAMPLES_SHAPE = {"step!": int, "prompt!": str, "answer!": str, "ended": bool, "reference": str}


class SamplesLog:
    """Appends answers to a file. A resumed run continues after the step that it resumes from, without duplicates."""

    def __init__(self, path: str | Path, *, resume_step: int | None = None, check: Callable[[], None] | None = None):
        """
        Args:
            path: the file; created with the first answer.
            resume_step: keep the lines up to this step and remove later ones, which will be written again; None: start
                with an empty file.
            check: see `LineLog`.
        """
        self.path = Path(path)
        self._lines = LineLog(self.path, check)
        if not self.path.exists():
            self._known = set()
            return
        kept = []
        if resume_step is not None:
            found = read_and_log_dropped(self.path, SAMPLES_SHAPE)
            kept = [line for line in found if line["step"] <= resume_step]
        self._known = {(line["step"], line["prompt"]) for line in kept}
        write_text(self.path, _as_text(kept))

    def write(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append answers that are not in the file yet; returns those.

        Args:
            lines: each with `step`, `prompt`, `answer`, `ended` and `reference`.
        """
        new = [line for line in lines if (line["step"], line["prompt"]) not in self._known]
        self._known |= {(line["step"], line["prompt"]) for line in new}
        if new:
            self._lines.append(_as_text(new))
        return new


def _as_text(lines: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
