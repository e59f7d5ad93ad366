"""Memory limits of the Linux control groups (cgroups, versions 1 and 2) that contain this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60
"""A limit above this number of bytes means that there is none."""


def memory_limits() -> Iterator[tuple[int, int]]:
    """Limit and use of each control group around this process, in bytes, droppable page cache excluded."""
    for folder in _group_folders():
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is None or used is None or limit > _UNLIMITED:
            continue
        stat = folder / "memory.stat"
        entries = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
        droppable = int(entries.get("inactive_file", entries.get("total_inactive_file", 0)))
        yield limit, max(used - droppable, 0)


def _group_folders() -> Iterator[Path]:
    """The folders of this process's control group and of its ancestors, up to the root."""
    listing = Path("/proc/self/cgroup")
    for line in listing.read_text().splitlines() if listing.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        # In a container the path may be the host's, and only the root exist.
        folder = root / path.lstrip("/")
        yield from (path for path in (folder, *folder.parents) if path.is_relative_to(root) and path.is_dir())


def _number(file: Path) -> int | None:
    if not file.is_file():
        return None
    text = file.read_text().strip()
    return int(text) if text.isdigit() else None
