"""Jinja2 environments for HTML and Markdown files. Printed values are escaped, unless they are marked as markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sft.common.markdown import escape_markdown, fenced
from sft.common.text import reveal


def html_environment(folder: Path) -> Environment:
    """For HTML: autoescape by MarkupSafe, hidden characters written out.

    Args:
        folder: the templates' folder.
    """
    return _environment(folder, autoescape=True, finalize=_revealed)


def markdown_environment(folder: Path) -> Environment:
    """For Markdown: printed values are escaped by `escape_markdown`; the filter `fenced` shows text verbatim.

    Args:
        folder: the templates' folder.
    """
    environment = _environment(folder, autoescape=False, finalize=escape_markdown)
    environment.filters["fenced"] = fenced
    return environment


def _environment(folder: Path, **options: Any) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _revealed(value: Any) -> Any:
    return value if hasattr(value, "__html__") else reveal(str(value))
