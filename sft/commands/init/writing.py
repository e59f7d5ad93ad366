"""Formats a first configuration as YAML, with the reasons as comments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft.commands.init.settings import Line
from sft.common.text import printable

_WIDTH = 120
_COMMENT_COLUMN = 44
"""As in sample_config.yaml."""
_SCHEMA = Path(__file__).absolute().parents[3] / "docs" / "config.schema.json"


def format_configuration(config_file: str, lines: Sequence[Line]) -> str:
    """Return the text of the file, with the commands that use it at the top."""
    head = [
        "# Written by `python sft_main.py --init`. Each value is a starting point; change what you like.",
        "# All keys: docs/configuration.md, or `python sft_main.py --help`.",
        "#",
        f"#   python sft_main.py --config_file {printable(config_file)} --dry_run",
        f"#   python sft_main.py --config_file {printable(config_file)}",
    ]
    body = [text for line in lines for text in _format_line(*line)]
    return "\n".join([*_schema_line(config_file), *head, *body]) + "\n"


def _schema_line(config_file: str) -> Iterator[str]:
    """The line by which an editor finds the keys: relative inside this program's folder, so that it can be moved."""
    root, file = _SCHEMA.parents[1], Path(config_file).expanduser().absolute()
    if _SCHEMA.is_file():  # not where the program was installed without its documentation
        is_inside = file.is_relative_to(root)
        schema = os.path.relpath(_SCHEMA, file.parent) if is_inside else _SCHEMA.as_uri()
        yield f"# yaml-language-server: $schema={schema}"


def _format_line(key: str, value: str, reason: str) -> Iterator[str]:
    if not key:
        yield ""
        yield f"# --- {value} ".ljust(_WIDTH - 2, "-")
        return
    setting = f"{key}: {value}".rstrip()
    if not reason:
        yield setting
        return
    line = f"{setting:<{_COMMENT_COLUMN - 1}} # {printable(reason)}"
    if len(line) <= _WIDTH:
        yield line
        return
    indent = " " * (len(key) - len(key.lstrip()))
    yield f"{indent}# {printable(reason)}"
    yield setting
