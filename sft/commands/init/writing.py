"""The lines of a first configuration as YAML text: values, and the reasons beside them as comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sft.commands.init.choices import Line
from sft.common.text import printable

_WIDTH = 120
_COLUMN = 44
"""Where comments begin, as in sample_config.yaml."""


def as_yaml(config_file: str, lines: Sequence[Line]) -> str:
    """The text of the file, with its own command at the top."""
    head = [
        "# Written by `python sft_main.py --init`. Every value is a choice to start from; change what you like.",
        "# All keys: docs/configuration.md, or `python sft_main.py --help`.",
        "#",
        f"#   python sft_main.py --config_file {printable(config_file)} --dry_run",
        f"#   python sft_main.py --config_file {printable(config_file)}",
    ]
    body = [text for line in lines for text in _as_text(*line)]
    return "\n".join([*head, *body]) + "\n"


def _as_text(key: str, value: str, reason: str) -> Iterator[str]:
    if not key:
        yield ""
        yield f"# --- {value} ".ljust(_WIDTH - 2, "-")
        return
    setting = f"{key}: {value}".rstrip()
    if not reason:
        yield setting
        return
    beside = f"{setting:<{_COLUMN - 1}} # {printable(reason)}"
    if len(beside) <= _WIDTH:
        yield beside
        return
    indent = " " * (len(key) - len(key.lstrip()))
    yield f"{indent}# {printable(reason)}"
    yield setting
