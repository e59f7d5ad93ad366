"""Where the repository is."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

ODD_NAMES = (
    "[x]",
    "[",
    "*?",
    "$HOME $x$",
    " a  b ",
    "'q\"`",
    "two\nlines",
    "a: b #c",
    "{x} %s %(a)s",
    "a\\n\\",
    "-x",
    "a~b",
    "日本 é",
    os.fsdecode(b"\xff\xfe"),
)
"""Names of files and folders, the last of which is not UTF-8."""
