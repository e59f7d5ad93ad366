"""Starts `tests/support/run_in_turn.py`: several runs in the same processes, which join one process group once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.parts import REPOSITORY


def run_in_turn(runs: list[dict], folder: Path, *, processes: int = 2, **environment: str) -> tuple[list[int], str]:
    """Exit statuses of runs on several processes, and what was said.

    Args:
        runs: as `tests/support/run_in_turn.py` takes them.
        folder: for what passes between here and there.
        environment: set beside this process's own.
    """
    path = folder / f"runs-{processes}.json"
    path.write_text(json.dumps(runs))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
         "tests/support/run_in_turn.py", str(path)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(path.with_suffix(".statuses").read_text()), done.stdout
