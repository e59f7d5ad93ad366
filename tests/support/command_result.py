"""The result of a command that a test ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Run:
    """The result of one command: its exit status, its output, and the files that it wrote."""

    def __init__(self, status: int, out: str, err: str, output_dir: Path):
        self.status, self.out, self.err, self.output_dir = status, out, err, output_dir

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.output_dir / "run_summary.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
