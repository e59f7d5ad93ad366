"""Logs of JSON lines that a run appends to, and that a killed process or a full disk may have torn."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from sft.common.errors import ConfigError
from sft.common.outside_files import MAX_DEPTH, outside_file, read_regular, reason
from sft.common.shapes import find_misfit, is_too_deep

logger = logging.getLogger("sft.train")


def read_json_lines(path: str | Path, shape: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the lines of a log.

    Args:
        path: the file.
        shape: of each line (see `sft.common.shapes`).

    Returns:
        The lines that can be read, and a sentence for each other one: a line torn by a killed process.

    Raises:
        ConfigError: if there is something of that name which cannot be read as a file.
    """
    with outside_file(f"{path} cannot be read", ConfigError):
        raw = read_regular(path)
    found, dropped = [], []
    # Lines end with a newline only: a text may contain U+2028, at which `splitlines` would tear it.
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line.decode("utf-8"))
            misfit = "it is nested too deeply" if is_too_deep(document, MAX_DEPTH) else find_misfit(document, shape)
        except (ValueError, RecursionError) as error:
            misfit = reason(error)
        if misfit is None:
            found.append(document)
        else:
            dropped.append(f"{path}:{number} is not a complete line ({misfit}); it is skipped.")
    return found, dropped


def read_and_log_dropped(path: str | Path, shape: Any) -> list[dict[str, Any]]:
    """Read the lines of a log, and log those that cannot be read."""
    found, dropped = read_json_lines(path, shape)
    for sentence in dropped:
        logger.info(sentence)
    return found
