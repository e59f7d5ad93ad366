"""The sources that the configuration names, read in chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.chunks import Chunk, RowBlock
from sft.data.sources.files import SPLIT_WORDS, deciding_suffix, find_files, group_by_split
from sft.data.sources.named import is_saved_dataset, load_splits, read_dataset
from sft.data.sources.readers import read_file
from sft.data.sources.streams import open_data_file

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Chunk", "OpenedSources", "Source", "open_sources"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The rows of one split from one entry of the configuration. Not read yet."""

    name: str
    """A file, a folder, a glob, or the name of a dataset, as configured."""
    files: tuple[str, ...]
    """Names of its files (or `dataset[split]`), as in `RowSource.file`."""
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    max_rows: int | None = None
    dataset: "Dataset | None" = field(default=None, repr=False, compare=False)
    """A dataset of the `datasets` library, which is read instead of files."""

    def chunks(self) -> Iterator[Chunk]:
        """Its rows in order, at most `max_rows`, read lazily.

        Raises:
            DataError: If a file cannot be read, or there are no rows.
        """
        rows_read = 0
        for file_index, share_read, block in self._blocks():
            if self.max_rows is not None:
                block = block.first(min(block.num_rows, self.max_rows - rows_read))
                share_read = max(share_read, (rows_read + block.num_rows) / self.max_rows)
            rows_read += block.num_rows
            yield Chunk(file_index=file_index, share_read=share_read, block=block)
            if rows_read == self.max_rows:
                return
        if not rows_read:
            more = f" and {len(self.files) - 10} more files" if len(self.files) > 10 else ""
            raise DataError(f"{', '.join(self.files[:10])}{more}: no rows found.")

    def digest(self) -> str:
        """Hex digest of its content and of what decides how it is read. Reads all files.

        Raises:
            DataError: If a file cannot be read.
        """
        digest = hashlib.sha256(f"max_rows={self.max_rows}".encode())
        if self.dataset is not None:
            digest.update(f"\ndataset={self.dataset._fingerprint}".encode())
            return digest.hexdigest()
        for name in self.files:
            path = Path(name)
            with open_data_file(path) as file:
                content = hashlib.file_digest(cast(BufferedReader, file.raw), "sha256").hexdigest()
            digest.update(f"\n{deciding_suffix(path)} {path.suffix.lower()} {content}".encode())
        return digest.hexdigest()

    def _blocks(self) -> Iterator[tuple[int, float, RowBlock]]:
        """Index of the file, share of the source read so far, rows."""
        if self.dataset is not None:
            for block, share in read_dataset(self.dataset, self.files[0]):
                yield 0, share, block
            return
        paths = [Path(name) for name in self.files]
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        total = max(sum(sizes), 1)
        for file_index, path in enumerate(paths):
            before = sum(sizes[:file_index])
            for block, share in read_file(path):
                yield file_index, min((before + share * sizes[file_index]) / total, 1.0), block


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSources:
    """All sources of a run. `unused` names files and splits next to them that are not read."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    unused: tuple[str, ...] = ()


def open_sources(config: DataConfig) -> OpenedSources:
    """Find every source that the configuration names. Reads no rows.

    Raises:
        DataError: If a source cannot be found.
    """
    finds_validation = config.validation_file is None and config.validation_split is None
    opened = [_open(entry, config, finds_validation) for entry in config.datasets or [_only_entry(config)]]
    train = tuple(source for one in opened for source in one.train)
    validation = tuple(source for one in opened for source in one.validation)
    if config.validation_file is not None:
        validation = (_open_validation(config.validation_file, config),)
    trained = {file for source in train for file in source.files}
    validation = tuple(source for source in validation if config.validation_file or not trained & set(source.files))
    used = trained | {file for source in validation for file in source.files}
    unused = dict.fromkeys(file for one in opened for file in one.unused if file not in used)
    return OpenedSources(train=train, validation=validation, unused=tuple(unused))


def _only_entry(config: DataConfig) -> DatasetSource:
    """The settings of a single source as an entry of `datasets`."""
    path = config.train_file or config.dataset_path or "."
    return DatasetSource(
        path=None if config.dataset_name is not None else path,
        name=config.dataset_name,
        config=config.dataset_config_name,
        columns=config.dataset_columns,
    )


def _open_validation(name: str, config: DataConfig) -> Source:
    """The source that `validation_file` names."""
    entry = DatasetSource(path=name, columns=config.dataset_columns)
    folder = Path(config.dataset_path or ".") / name
    if not is_saved_dataset(folder):
        return _source(entry, find_files(name, config.dataset_path))
    splits = load_splits(str(folder), None, None, key="validation_file")
    split = _split_meant(splits, "validation") or _split_meant(splits, "test")
    if split is None and len(splits) > 1:
        raise DataError(f"validation_file: {folder} has no split 'validation'. Splits: {', '.join(splits)}.")
    split = split or next(iter(splits))
    return _source(replace(entry, path=None, name=str(folder)), split, dataset=splits[split])


def _open(entry: DatasetSource, config: DataConfig, finds_validation: bool) -> OpenedSources:
    """The split that an entry asks for, and the validation split next to training data if `finds_validation`."""
    if entry.name is None:
        base = config.dataset_path if config.train_file is not None else None
        folder = Path(base or ".") / str(entry.path)
        if is_saved_dataset(folder):
            key = "path" if config.datasets else "dataset_path" if config.train_file is None else "train_file"
            return _open_dataset(replace(entry, path=None, name=str(folder)), config, finds_validation, key)
        # All files of a glob are taken, except under `dataset_path`, where a glob is treated like a folder.
        split_by_name = config.train_file is None and not config.datasets
        return _open_files(entry, base, finds_validation, split_by_name=split_by_name)
    folder = Path(entry.name).expanduser()
    if folder.is_dir() and not is_saved_dataset(folder) and entry.config is None:
        return _open_files(replace(entry, path=str(folder)), None, finds_validation)
    return _open_dataset(entry, config, finds_validation, "dataset_name")


def _open_dataset(entry: DatasetSource, config: DataConfig, finds_validation: bool, key: str) -> OpenedSources:
    """Open a dataset of the `datasets` library, which `key` of the settings names."""
    name = str(entry.name)
    splits = load_splits(name, entry.config, entry.split, streaming=config.streaming, key=key)
    wanted = entry.split if entry.split in splits else _split_meant(splits, entry.split or "train")
    if wanted is None:
        raise DataError(f"{name}: no split {entry.split or 'train'!r}. Splits: {', '.join(splits)}.")
    validation: tuple[Source, ...] = ()
    beside = _split_meant(splits, "validation")
    # The rows of a streamed dataset are not stored, but validation data is read repeatedly.
    if finds_validation and not config.streaming and wanted == _split_meant(splits, "train") and beside is not None:
        validation = (_source(_unweighted(entry), beside, dataset=splits[beside]),)
    return OpenedSources(
        train=(_source(entry, wanted, dataset=splits[wanted]),),
        validation=validation,
        unused=tuple(f"{name}[{split}]" for split in splits),
    )


def _split_meant(splits: Iterable[str], wanted: str) -> str | None:
    """The split of that name, or the only one whose name means the same (`dev` for `validation`)."""
    if wanted in splits:
        return wanted
    meant = SPLIT_WORDS.get(wanted)
    same = [split for split in splits if meant is not None and SPLIT_WORDS.get(split.lower()) == meant]
    return same[0] if len(same) == 1 else None


def _open_files(
    entry: DatasetSource, base: str | None, finds_validation: bool, *, split_by_name: bool = False
) -> OpenedSources:
    """Open a file, a folder or a glob.

    Args:
        entry: An entry with `path`.
        base: The folder that a relative path starts from.
        finds_validation: Whether to take the validation files of a folder too.
        split_by_name: Whether the files of a glob are split by their names, as those of a folder are.
    """
    path = Path(base or ".") / str(entry.path)
    files = find_files(str(entry.path), base)
    saved = sorted(str(folder) for folder in {file.parent for file in files} if is_saved_dataset(folder))
    if saved:
        raise DataError(
            f"{path}: contains datasets that `save_to_disk` wrote ({', '.join(saved[:5])}). Give the folder of one of "
            "them (in validation_file that of another), or an entry of datasets for each."
        )
    is_folder = path.is_dir() or (split_by_name and not path.is_file())
    groups = group_by_split(files, path) if is_folder or entry.split else {"train": files}
    wanted = SPLIT_WORDS.get(entry.split or "train", str(entry.split))
    if wanted not in groups or wanted == "other":
        names = ", ".join(str(file) for group in groups.values() for file in group[:3])
        kind = "training" if wanted == "train" else wanted
        raise DataError(f"{path}: no {kind} file among {names}. Set train_file to it (in datasets: path).")
    validation: tuple[Source, ...] = ()
    if finds_validation and is_folder and wanted == "train" and "validation" in groups:
        validation = (_source(_unweighted(entry), groups["validation"]),)
    return OpenedSources(
        train=(_source(entry, groups[wanted]),),
        validation=validation,
        unused=tuple(str(file) for group in groups.values() for file in group),
    )


def _unweighted(entry: DatasetSource) -> DatasetSource:
    """The entry for the validation rows next to its training rows: weight and max_rows apply to training rows only."""
    return replace(entry, weight=1.0, max_rows=None)


def _source(entry: DatasetSource, split: str | Sequence[Path], dataset: "Dataset | None" = None) -> Source:
    """The source of some files, or of a split of a dataset, with the settings of the entry."""
    files = (f"{entry.name}[{split}]",) if dataset is not None else tuple(map(str, split))
    return Source(
        name=str(entry.name or entry.path),
        files=files,
        format=entry.format,
        columns=entry.columns,
        weight=entry.weight,
        max_rows=entry.max_rows,
        dataset=dataset,
    )
