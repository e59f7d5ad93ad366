"""Writing files so that no reader finds half of one, and values as strict JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old contents or the new ones.

    Unpaired surrogates, which have no UTF-8, are written as `\\ud800`. Inside JSON that is the standard escape.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, target)


def write_json(document: Mapping[str, Any], path: str | Path) -> None:
    """Write a JSON document atomically, indented by two spaces.

    Args:
        document: JSON-compatible values (see `json_safe`).
        path: the file.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def json_safe(value: Any) -> Any:
    """Convert a value to strict JSON types.

    NaN and inf become null, tuples become lists, NumPy and torch scalars become numbers, other objects their text.
    """
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def flush_to_disk(path: Path) -> None:
    """Call fsync on a file or folder, so that its contents survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
