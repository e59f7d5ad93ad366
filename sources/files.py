"""Finding data files: one file, a folder, or a glob; and which split a file's name says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sft_errors import DataError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "txt",
    ".text": "txt",
    ".parquet": "parquet",
}
"""File name ending -> how it is read."""
COMPRESSIONS = (".gz", ".zst", ".zstd")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}


def file_format(path: Path) -> str | None:
    """How a file is read, by its name's ending (a compression's ending aside); None if it is no data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def find_files(place: str, folder: str | None = None) -> list[Path]:
    """The data files that a file name, a folder or a glob stands for, sorted by name.

    Raises:
        DataError: if there is none, or a named file is of no kind that we read.
    """
    path = Path(folder or ".") / place
    if any(character in place for character in "*?[") and not path.exists():
        base = Path("/") if path.is_absolute() else Path(".")
        found = base.glob(str(path.relative_to("/")) if path.is_absolute() else str(path))
        files = sorted(found for found in found if found.is_file() and file_format(found))
    elif path.is_dir():
        files = sorted(
            found
            for found in path.rglob("*")
            if found.is_file() and file_format(found) and not _is_hidden(found.relative_to(path))
        )
    else:
        if file_format(path) is None:
            raise DataError(f"{path}: unknown kind of file. Read are {_allowed()}.")
        return [path]
    if not files:
        raise DataError(f"{path}: no data files there. Read are {_allowed()}.")
    return files


def group_by_split(files: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """Files by the split that their names say (`train`, `validation`, `test`).

    Where no name says anything, all are training data. Where some do, the others are left out of every split and
    listed under `other`.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", str(file.relative_to(root) if root in file.parents else file.name).lower())
        splits = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
        groups.setdefault(splits[-1] if splits else "other", []).append(file)
    if "train" not in groups and "other" in groups:
        groups["train"] = groups.pop("other")
    return groups


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _allowed() -> str:
    return f"{', '.join(FORMATS)}, also compressed ({', '.join(COMPRESSIONS)})"
