"""Find data files (one file, a folder or a glob), and tell their split from their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sft.common.errors import DataError
from sft.common.files import is_address, matching_paths, refuse_special_files, special_kind
from sft.data.sources.remote import RemoteFile, find_remote_files

DataPath = Path | RemoteFile
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
"""File name suffix -> how the file is read."""
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
"""Word in a file name -> split."""


def data_path(name: str, folder: str | None = None) -> DataPath:
    """The path of a file, or its address.

    Args:
        name: As in the settings.
        folder: The folder, or the address of one, that a relative name starts from; None for the working directory.
    """
    if is_address(name):
        return RemoteFile(name)
    return RemoteFile(folder).joined(name) if folder and is_address(folder) else Path(folder or ".") / name


def file_format(path: DataPath) -> str | None:
    """How a file is read, by its suffix (ignoring that of a compression); None if it is not a data file."""
    return FORMATS.get(deciding_suffix(path))


def deciding_suffix(path: DataPath) -> str:
    """The suffix that decides how a file is read, in lower case: the one before the suffix of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def find_files(pattern: str, folder: str | None = None) -> Sequence[DataPath]:
    """The data files that a file name, a folder or a glob refers to, sorted by name.

    Args:
        pattern: A file, a folder or a glob, or the address of one.
        folder: The folder that a relative pattern starts from; None for the working directory.

    Raises:
        DataError: If there is no file, a named file is of an unknown kind, or one is a FIFO or a device.
    """
    path = data_path(pattern, folder)
    if "\0" in pattern:
        raise DataError(f"{pattern!r}: a file name cannot contain a NUL character.")
    if isinstance(path, RemoteFile):
        if remote := find_remote_files(path, lambda file: file_format(file) is not None):
            return remote
        raise DataError(f"{path}: no data files found. Supported: {_supported()}.")
    try:
        if any(character in pattern for character in "*?[") and not path.exists():
            files = sorted(file for file in matching_paths(pattern, folder) if file_format(file) and _is_readable(file))
        elif path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file_format(file) and _is_readable(file) and not _is_hidden(file.relative_to(path))
            )
        elif file_format(path) is None and special_kind(path) is None:
            what = "unknown kind of file" if path.exists() else "no such file or folder"
            raise DataError(f"{path}: {what}. Supported: {_supported()}.")
        else:
            files = [path]
    except (OSError, ValueError, NotImplementedError) as error:
        # No permission to enter a folder, a name that is too long, or a glob such as `**x`.
        raise DataError(f"{str(path)[:200]}: {error.strerror if isinstance(error, OSError) else error}.") from None
    refuse_special_files(DataError, *files)
    if not files:
        raise DataError(f"{path}: no data files found. Supported: {_supported()}.")
    return files


def group_by_split(files: Sequence[DataPath], root: DataPath) -> dict[str, list[DataPath]]:
    """Group files by the split in their names (`train`, `validation`, `test`).

    If no name contains a split, all files are training data. If some do, the remaining files belong to no split and are
    listed under `other`.
    """
    groups: dict[str, list[DataPath]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", _name_below(file, root).lower())
        splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        groups.setdefault(splits[-1] if splits else "other", []).append(file)
    if "train" not in groups and "other" in groups:
        groups["train"] = groups.pop("other")
    return groups


def _name_below(file: DataPath, root: DataPath) -> str:
    """The path of a file from a folder on, if it is in that folder; else its name."""
    if isinstance(file, RemoteFile):
        return file.below(root) if isinstance(root, RemoteFile) else file.name
    return str(file.relative_to(root)) if isinstance(root, Path) and root in file.parents else file.name


def _is_readable(path: Path) -> bool:
    """Whether it is a file. A special file is one too: it is reported, not skipped."""
    return path.is_file() or special_kind(path) is not None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _supported() -> str:
    return f"{', '.join(FORMATS)}, also compressed ({', '.join(COMPRESSIONS)})"
