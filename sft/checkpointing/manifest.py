"""`manifest.json`: the files of a checkpoint with sizes and checksums, and the run that saved it.

A checkpoint without a manifest was not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.common.files import special_kind

MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Version of the manifest's format."""


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of all files in a folder.

    Args:
        folder: a checkpoint that is complete except for the manifest.
        entries: what to store of the run; JSON-compatible.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
    document = {"format": FORMAT, **entries, "files": files}
    document["sha256"] = _own_digest(document)
    (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a checkpoint in which `find_damage` found nothing."""
    return json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def find_damage(folder: Path) -> list[str]:
    """The damage of a checkpoint, file by file: `model.safetensors has 10 bytes instead of 20`; [] if there is none.

    Every byte is read. Files that the manifest does not list are ignored.
    """
    if folder.is_symlink() and not folder.exists():
        return [f"it is a link to {os.readlink(folder)}, which does not exist"]
    path = folder / MANIFEST_FILE
    kind = special_kind(path)
    if kind is not None:
        return [f"{MANIFEST_FILE} is {kind}, not a regular file"]
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] != _own_digest(document):
            return [f"{MANIFEST_FILE} is damaged"]
        files = document["files"]
    except FileNotFoundError:
        return [f"{MANIFEST_FILE} is missing: the checkpoint was not finished"]
    except OSError as error:
        return [f"{MANIFEST_FILE} cannot be read ({error.strerror or error})"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST_FILE} is damaged"]
    if document["format"] != FORMAT:
        return [f"{MANIFEST_FILE} has format {document['format']}, but this version reads format {FORMAT}"]
    found = (_damage_of(folder / name, name, written) for name, written in files.items())
    return [problem for problem in found if problem is not None]


def _damage_of(path: Path, name: str, written: Mapping[str, Any]) -> str | None:
    kind = special_kind(path)
    if kind is not None:
        return f"{name} is {kind}, not a regular file"
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{name} has {size:,} bytes instead of {written['bytes']:,}"
        if _digest(path) != written["sha256"]:
            return f"{name} does not match its checksum in {MANIFEST_FILE} (sha256)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(document: Mapping[str, Any]) -> str:
    """The checksum of the manifest itself, without the line that contains it."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
