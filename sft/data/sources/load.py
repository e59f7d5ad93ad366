"""From the data settings to sources of rows, which are read in chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sft.common.errors import DataError
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.sources.chunks import Chunk, Stretch
from sft.data.sources.files import SPLIT_WORDS, deciding_suffix, find_files, group_by_split
from sft.data.sources.named import is_saved_dataset, load_splits, read_dataset
from sft.data.sources.readers import read_file
from sft.data.sources.streams import open_data_file

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Chunk", "OpenedSources", "Source", "open_sources"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows of one split from one place, not read yet."""

    name: str
    """A file, a folder, a glob, or a dataset's name, as the settings give it."""
    files: tuple[str, ...]
    """Names of its files (or `dataset[split]`), as they stand in `RowSource.file`."""
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    max_rows: int | None = None
    dataset: "Dataset | None" = field(default=None, repr=False, compare=False)
    """What is read in place of files: a dataset of the `datasets` library."""

    def chunks(self) -> Iterator[Chunk]:
        """Its rows in order, `max_rows` of them at most, read while they are asked for.

        Raises:
            DataError: if a file as a whole cannot be read, or there is no row at all.
        """
        rows_read = 0
        for file_index, share_read, stretch in self._stretches():
            if self.max_rows is not None:
                stretch = stretch.first(min(stretch.num_rows, self.max_rows - rows_read))
                share_read = max(share_read, (rows_read + stretch.num_rows) / self.max_rows)
            rows_read += stretch.num_rows
            yield Chunk(file_index=file_index, share_read=share_read, stretch=stretch)
            if rows_read == self.max_rows:
                return
        if not rows_read:
            more = f" and {len(self.files) - 10} more files" if len(self.files) > 10 else ""
            raise DataError(f"{', '.join(self.files[:10])}{more}: no rows in there.")

    def digest(self) -> str:
        """A hex digest of its content and of what decides how it is read. Files are read once more for it.

        Raises:
            DataError: if a file cannot be read.
        """
        whole = hashlib.sha256(f"max_rows={self.max_rows}".encode())
        if self.dataset is not None:
            whole.update(f"\ndataset={self.dataset._fingerprint}".encode())
            return whole.hexdigest()
        for name in self.files:
            path = Path(name)
            with open_data_file(path) as file:
                content = hashlib.file_digest(file.raw, "sha256").hexdigest()
            whole.update(f"\n{deciding_suffix(path)} {path.suffix.lower()} {content}".encode())
        return whole.hexdigest()

    def _stretches(self) -> Iterator[tuple[int, float, Stretch]]:
        """Place of the file, share of the whole source that is read, rows."""
        if self.dataset is not None:
            for stretch, share in read_dataset(self.dataset, self.files[0]):
                yield 0, share, stretch
            return
        paths = [Path(name) for name in self.files]
        sizes = [path.stat().st_size if path.is_file() else 0 for path in paths]
        total = max(sum(sizes), 1)
        for file_index, path in enumerate(paths):
            before = sum(sizes[:file_index])
            for stretch, share in read_file(path):
                yield file_index, min((before + share * sizes[file_index]) / total, 1.0), stretch


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSources:
    """All sources of a run; `unused` names what lies beside them and is not read."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    unused: tuple[str, ...] = ()


def open_sources(config: DataConfig) -> OpenedSources:
    """Finds every source that the settings name. Reads no row yet.

    Raises:
        DataError: if something cannot be found.
    """
    brings_validation = config.validation_file is None and config.validation_split is None
    opened = [_open(entry, config, brings_validation) for entry in config.datasets or [_only_entry(config)]]
    train = tuple(source for one in opened for source in one.train)
    validation = tuple(source for one in opened for source in one.validation)
    if config.validation_file is not None:
        files = find_files(config.validation_file, config.dataset_path)
        entry = DatasetSource(path=config.validation_file, columns=config.dataset_columns)
        validation = (_source(entry, files),)
    trained = {file for source in train for file in source.files}
    validation = tuple(source for source in validation if config.validation_file or not trained & set(source.files))
    used = trained | {file for source in validation for file in source.files}
    unused = dict.fromkeys(file for one in opened for file in one.unused if file not in used)
    return OpenedSources(train=train, validation=validation, unused=tuple(unused))


def _only_entry(config: DataConfig) -> DatasetSource:
    """The settings of a single source in the form of several."""
    place = config.train_file or config.dataset_path or "."
    return DatasetSource(
        path=None if config.dataset_name is not None else place,
        name=config.dataset_name,
        config=config.dataset_config_name,
        columns=config.dataset_columns,
    )


def _open(entry: DatasetSource, config: DataConfig, brings_validation: bool) -> OpenedSources:
    """One entry: the split that it takes, and the validation split that lies beside training data."""
    if entry.name is None:
        base = config.dataset_path if config.train_file is not None else None
        # A glob names its files one by one, so all of them are taken; under `dataset_path` it stands for a folder.
        names_tell = config.train_file is None and not config.datasets
        return _open_files(entry, base, brings_validation, names_tell=names_tell)
    folder = Path(entry.name).expanduser()
    if folder.is_dir() and not is_saved_dataset(folder) and entry.config is None:
        return _open_files(replace(entry, path=str(folder)), None, brings_validation)
    splits = load_splits(entry.name, entry.config, entry.split, streaming=config.streaming)
    wanted = entry.split or "train"
    if wanted not in splits:
        raise DataError(f"{entry.name}: no split {wanted!r}; there: {', '.join(splits)}.")
    validation = ()
    # Rows of a streamed dataset are stored nowhere, and validation data is read again and again.
    if brings_validation and not config.streaming and wanted == "train" and "validation" in splits:
        validation = (_source(_whole(entry), "validation", dataset=splits["validation"]),)
    return OpenedSources(
        train=(_source(entry, wanted, dataset=splits[wanted]),),
        validation=validation,
        unused=tuple(f"{entry.name}[{split}]" for split in splits),
    )


def _open_files(
    entry: DatasetSource, base: str | None, brings_validation: bool, *, names_tell: bool = False
) -> OpenedSources:
    """A file, a folder or a glob.

    Args:
        entry: with `path`.
        base: the folder that the path starts from.
        brings_validation: whether a folder's validation files are taken too.
        names_tell: whether the files of a glob belong to the splits that their names tell, as those of a folder do.
    """
    path = Path(base or ".") / str(entry.path)
    files = find_files(str(entry.path), base)
    is_folder = path.is_dir() or (names_tell and not path.is_file())
    groups = group_by_split(files, path) if is_folder or entry.split else {"train": files}
    wanted = SPLIT_WORDS.get(entry.split or "train", str(entry.split))
    if wanted not in groups or wanted == "other":
        names = ", ".join(str(file) for group in groups.values() for file in group[:3])
        kind = "training" if wanted == "train" else wanted
        raise DataError(f"{path}: no {kind} file among {names}. Name it with train_file (in datasets: path).")
    validation = ()
    if brings_validation and is_folder and wanted == "train" and "validation" in groups:
        validation = (_source(_whole(entry), groups["validation"]),)
    return OpenedSources(
        train=(_source(entry, groups[wanted]),),
        validation=validation,
        unused=tuple(str(file) for group in groups.values() for file in group),
    )


def _whole(entry: DatasetSource) -> DatasetSource:
    """An entry for the validation rows beside its training rows: those alone are repeated or thinned."""
    return replace(entry, weight=1.0, max_rows=None)


def _source(entry: DatasetSource, split: str | Sequence[Path], dataset: "Dataset | None" = None) -> Source:
    """The files, or the named split of a dataset, with the settings of their entry."""
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
