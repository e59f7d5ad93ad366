"""The command in this process."""

from __future__ import annotations

import base64
import gc
import importlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sft.processes.libraries import quiet_libraries

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A PNG file."""


_LIBRARIES = (
    "peft",
    "transformers.trainer",
    "sft_main",
    "data_handler",
    "trainer_utils",
    "sft.training.batch_size_trials",
    "sft.training.dry_run",
    "sft.training.results",
)


def run_command(arguments: Sequence[str], *, draws_curves: bool = False) -> int:
    """Run `sft_main.py` in this process; returns its exit status.

    Args:
        arguments: of the command.
        draws_curves: whether `training_curves.png` is drawn. That takes longer than a small run; otherwise one pixel is
            written.
    """
    import_libraries()
    import sft_main
    from sft.training import results

    if draws_curves:
        return sft_main.main(arguments)
    with patch.object(results, "draw_curves", _write_one_pixel):
        return sft_main.main(arguments)


@cache
def import_libraries() -> None:
    """Import what a run needs, and exclude it from garbage collection: each run collects several times."""
    quiet_libraries()  # as the command does, before transformers imports peft and bitsandbytes
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _write_one_pixel(events: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    Path(path).write_bytes(ONE_PIXEL)
