"""Local paths and names on the Hugging Face Hub."""

from __future__ import annotations


def looks_like_a_path(name: str) -> bool:
    """Return whether a name can only be a local path: names on the Hub are `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith("/") or "\\" in name
