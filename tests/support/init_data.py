"""Files that the first configuration is written for."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.paths import REPOSITORY

MODEL = str(REPOSITORY / "examples" / "tiny-chat")


def rows_file(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name
