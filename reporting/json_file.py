"""JSON files that a reader never sees half of."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(document: dict[str, Any], path: str | Path) -> None:
    """Writes a document beside its place, then moves it there in one go."""
    target = Path(path)
    temporary = target.with_suffix(".tmp")
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Half a surrogate pair from someone's data has no UTF-8; written `\ud800` it is JSON's own escape.
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, target)
