"""`manifest.json`: what a checkpoint holds, file by file, and what run it is of. Without one it is not finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
FORMAT = 1
"""Of the manifest; a later one would be told apart by it."""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest of all files that lie in a folder.

    Args:
        folder: a checkpoint that is otherwise complete.
        facts: what to keep of the run beside the files; ready for JSON.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
    document = {"format": FORMAT, **facts, "files": files}
    document["sha256"] = _own_digest(document)
    (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that `find_damage` found sound."""
    return json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))


def find_damage(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, file by file: `model.safetensors has 10 bytes, 20 were written`; [] if sound.

    Every byte is read. Files that the manifest does not name are passed over.
    """
    path = folder / MANIFEST_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] != _own_digest(document):
            return [f"{MANIFEST_FILE} is not what was written"]
        files = document["files"]
    except FileNotFoundError:
        return [f"{MANIFEST_FILE} is missing, so it was never finished"]
    except OSError as error:
        return [f"{MANIFEST_FILE} cannot be read ({error.strerror or error})"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST_FILE} is not what was written"]
    if document["format"] != FORMAT:
        return [f"{MANIFEST_FILE} is of format {document['format']}, and this version reads {FORMAT}"]
    found = (_damage_of(folder / name, name, written) for name, written in files.items())
    return [problem for problem in found if problem is not None]


def _damage_of(path: Path, name: str, written: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{name} has {size:,} bytes, {written['bytes']:,} were written"
        if _digest(path) != written["sha256"]:
            return f"{name} is not what was written (its sha256 is another)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(document: Mapping[str, Any]) -> str:
    """Of the manifest itself, without the line that holds it."""
    content = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
