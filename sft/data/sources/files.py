"""Finding data files: one file, a folder, or a glob; and which split a file's name says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sft.common.errors import DataError

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
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "test": "test",
}
"""Word in a file's name -> the split that it tells."""


def file_format(path: Path) -> str | None:
    """How a file is read, by its name's ending (a compression's ending aside); None if it is no data file."""
    return FORMATS.get(deciding_suffix(path))


def deciding_suffix(path: Path) -> str:
    """The ending of a file's name that says how it is read, in small letters: that before a compression's."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(place: str, folder: str | None = None) -> list[Path]:
    """The data files that a file name, a folder or a glob stands for, sorted by name.

    Raises:
        DataError: if there is none, or a named file is of no kind that we read.
    """
    path = Path(folder or ".") / place
    if "\0" in place:
        raise DataError(f"{place!r}: no file has such a name.")
    try:
        if any(character in place for character in "*?[") and not path.exists():
            base = Path(path.anchor or ".")
            found = base.glob(str(path.relative_to(path.anchor)) if path.anchor else str(path))
            files = sorted(file for file in found if file.is_file() and file_format(file))
        elif path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and file_format(file) and not _is_hidden(file.relative_to(path))
            )
        elif file_format(path) is None:
            what = "unknown kind of file" if path.exists() else "no such file or folder"
            raise DataError(f"{path}: {what}. Read are {_allowed()}.")
        else:
            return [path]
    except (OSError, ValueError, NotImplementedError) as error:
        # A folder that may not be entered, a name that is too long, a glob such as `**x`.
        raise DataError(f"{str(path)[:200]}: {error.strerror if isinstance(error, OSError) else error}.") from None
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
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        groups.setdefault(splits[-1] if splits else "other", []).append(file)
    if "train" not in groups and "other" in groups:
        groups["train"] = groups.pop("other")
    return groups


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _allowed() -> str:
    return f"{', '.join(FORMATS)}, also compressed ({', '.join(COMPRESSIONS)})"
