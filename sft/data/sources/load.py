"""The sources that the configuration names, read in chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sft.common.chat_arguments import system_prompt_text
from sft.common.errors import DataError
from sft.common.secrets import hide_addresses
from sft.configuration.evaluation_sets import SETS_OF_FILES, files_of_sets
from sft.configuration.schema import DataConfig, DatasetSource
from sft.data.row_functions import NO_STEPS, RowSteps
from sft.data.sources.chunks import Chunk, RowBlock
from sft.data.sources.files import SPLIT_WORDS, DataPath, data_path, deciding_suffix, find_files, group_by_split
from sft.data.sources.named import is_saved_dataset, load_splits, read_dataset
from sft.data.sources.readers import read_file
from sft.data.sources.remote import RemoteFile
from sft.data.sources.streams import open_data_file
from sft.prompting.chat_settings import NO_SETTINGS, ChatSettings

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
    paths: tuple[DataPath, ...] = ()
    """Where these files are: an address may have a password that its name lacks."""
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    probability: float | None = None
    max_rows: int | None = None
    chats: ChatSettings = NO_SETTINGS
    """What the settings add to its conversations."""
    steps: RowSteps = NO_STEPS
    """What the user's functions do to its rows after they are read. `chunks` and `digest` are of the rows as read."""
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
        for path in self.paths:
            content = path.digest() if isinstance(path, RemoteFile) else _local_digest(path)
            digest.update(f"\n{deciding_suffix(path)} {path.suffix.lower()} {content}".encode())
        return digest.hexdigest()

    def _blocks(self) -> Iterator[tuple[int, float, RowBlock]]:
        """Index of the file, share of the source read so far, rows."""
        if self.dataset is not None:
            for block, share in read_dataset(self.dataset, self.files[0]):
                yield 0, share, block
            return
        sizes = [_num_bytes(path) for path in self.paths]
        total = max(sum(sizes), 1)
        for file_index, path in enumerate(self.paths):
            before = sum(sizes[:file_index])
            for block, share in read_file(path):
                yield file_index, min((before + share * sizes[file_index]) / total, 1.0), block


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSources:
    """All sources of a run. `unused` names files and splits next to them that are not read."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    sets: Mapping[str, Mapping[str | None, Source]] = field(default_factory=dict)
    """Key (`validation_file`, `test_file`, `forgetting_check`) -> name of each set -> its source."""
    unused: tuple[str, ...] = ()

    def with_settings(self, steps: RowSteps, chats: ChatSettings) -> "OpenedSources":
        """The same with these steps, and settings of conversations, in every source."""
        train, validation = (
            tuple(replace(source, steps=steps, chats=chats) for source in sources)
            for sources in (self.train, self.validation)
        )
        return replace(self, train=train, validation=validation)


def open_sources(config: DataConfig) -> OpenedSources:
    """Find every source that the configuration names. Reads no rows.

    Raises:
        DataError: If a source cannot be found.
        ConfigError: If a `row_function` or `row_filter` cannot be loaded.
    """
    finds_validation = config.validation_file is None and config.validation_split is None
    opened = []
    for number, entry in enumerate(config.datasets or [_only_entry(config)]):
        steps = _steps(config, entry, f"datasets[{number}]")
        opened.append(_open(entry, config, finds_validation).with_settings(steps, chat_settings(config, entry)))
    train = tuple(source for one in opened for source in one.train)
    validation = tuple(source for one in opened for source in one.validation)
    sets = {key: _open_sets(key, config) for key in SETS_OF_FILES}
    if config.validation_file is not None:
        validation = tuple(sets["validation_file"].values())
    trained = {file for source in train for file in source.files}
    validation = tuple(source for source in validation if config.validation_file or not trained & set(source.files))
    of_sets = [source for found in sets.values() for source in found.values()]
    used = trained | {file for source in (*validation, *of_sets) for file in source.files}
    unused = dict.fromkeys(file for one in opened for file in one.unused if file not in used)
    return OpenedSources(train=train, validation=validation, sets=sets, unused=tuple(unused))


def _open_sets(key: str, config: DataConfig) -> dict[str | None, Source]:
    """The sources that one of `SETS_OF_FILES` names, by the names of their sets."""
    files = files_of_sets(getattr(config, key))
    return {
        name: replace(_open_set(key, file, config), steps=_steps(config), chats=chat_settings(config))
        for name, file in files.items()
    }


def _steps(config: DataConfig, entry: DatasetSource | None = None, key: str = "") -> RowSteps:
    """The user's functions for an entry, `key` of the settings: its own, or else those of the run."""
    found = {}
    for name in ("row_filter", "row_function"):
        own = None if entry is None else getattr(entry, name)
        found[name] = (getattr(config, name), name) if own is None else (own, f"{key}.{name}")
    return RowSteps.for_settings(**found)


def chat_settings(config: DataConfig, entry: DatasetSource | None = None) -> ChatSettings:
    """The settings of conversations for an entry of `datasets`, or else those of the run.

    Raises:
        DataError: If the file of a system prompt cannot be read.
    """
    own = entry or DatasetSource()
    prompt = config.system_prompt if own.system_prompt is None else own.system_prompt
    text, problem = (None, None) if prompt is None else system_prompt_text(prompt)
    if problem is not None:
        raise DataError(f"system_prompt: {problem}")
    return ChatSettings(
        template_kwargs={**config.chat_template_kwargs, **own.chat_template_kwargs},
        system_prompt=text,
        replaces=(own.system_prompt_policy or config.system_prompt_policy) == "replace",
    )


def _only_entry(config: DataConfig) -> DatasetSource:
    """The settings of a single source as an entry of `datasets`."""
    path = config.train_file or config.dataset_path or "."
    return DatasetSource(
        path=None if config.dataset_name is not None else path,
        name=config.dataset_name,
        config=config.dataset_config_name,
        revision=config.dataset_revision,
        columns=config.dataset_columns,
    )


def _open_set(key: str, name: str, config: DataConfig) -> Source:
    """The source of rows to evaluate that a key of the settings names."""
    entry = DatasetSource(path=name, columns=config.dataset_columns)
    folder = data_path(name, config.dataset_path)
    if isinstance(folder, RemoteFile) or not is_saved_dataset(folder):
        return _source(entry, find_files(name, config.dataset_path))
    splits = load_splits(str(folder), None, None, key=key)
    wanted, other = ("test", "validation") if key == "test_file" else ("validation", "test")
    split = _split_meant(splits, wanted) or _split_meant(splits, other)
    if split is None and len(splits) > 1:
        raise DataError(f"{key}: {folder} has no split {wanted!r}. Splits: {', '.join(splits)}.")
    split = split or next(iter(splits))
    return _source(replace(entry, path=None, name=str(folder)), split, dataset=splits[split])


def _open(entry: DatasetSource, config: DataConfig, finds_validation: bool) -> OpenedSources:
    """The split that an entry asks for, and the validation split next to training data if `finds_validation`."""
    if entry.name is None:
        base = config.dataset_path if config.train_file is not None else None
        folder = data_path(str(entry.path), base)
        if isinstance(folder, Path) and is_saved_dataset(folder):
            key = "path" if config.datasets else "dataset_path" if config.train_file is None else "train_file"
            return _open_dataset(replace(entry, path=None, name=str(folder)), config, finds_validation, key)
        # All files of a glob are taken, except under `dataset_path`, where a glob is treated like a folder.
        split_by_name = config.train_file is None and not config.datasets
        return _open_files(entry, base, finds_validation, split_by_name=split_by_name)
    named = Path(entry.name).expanduser()
    if named.is_dir() and not is_saved_dataset(named) and entry.config is None:
        return _open_files(replace(entry, path=str(named)), None, finds_validation)
    return _open_dataset(entry, config, finds_validation, "dataset_name")


def _open_dataset(entry: DatasetSource, config: DataConfig, finds_validation: bool, key: str) -> OpenedSources:
    """Open a dataset of the `datasets` library, which `key` of the settings names."""
    name = str(entry.name)
    splits = load_splits(name, entry.config, entry.split, revision=entry.revision, streaming=config.streaming, key=key)
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
    path = data_path(str(entry.path), base)
    files = find_files(str(entry.path), base)
    folders = {file.parent for file in files if isinstance(file, Path)}
    saved = sorted(str(folder) for folder in folders if is_saved_dataset(folder))
    if saved:
        raise DataError(
            f"{path}: contains datasets that `save_to_disk` wrote ({', '.join(saved[:5])}). Give the folder of one of "
            "them (in validation_file that of another), or an entry of datasets for each."
        )
    is_file, is_folder = list(files) == [path], isinstance(path, Path) and path.is_dir()
    if isinstance(path, RemoteFile):
        is_folder = not is_file and not path.is_glob
    is_folder = is_folder or (split_by_name and not is_file)
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
    """The entry for the validation rows next to its training rows, to which alone the other settings apply."""
    return replace(entry, weight=1.0, probability=None, max_rows=None)


def _num_bytes(path: DataPath) -> int:
    """Size of a file for the progress; 0 if it is not known."""
    if isinstance(path, RemoteFile):
        return path.num_bytes() or 0
    return path.stat().st_size if path.is_file() else 0


def _local_digest(path: Path) -> str:
    with open_data_file(path) as file:
        return hashlib.file_digest(cast(BufferedReader, file.raw), "sha256").hexdigest()


def _source(entry: DatasetSource, split: str | Sequence[DataPath], dataset: "Dataset | None" = None) -> Source:
    """The source of some files, or of a split of a dataset, with the settings of the entry."""
    paths = () if isinstance(split, str) else tuple(split)
    at = f"@{entry.revision}" if entry.revision else ""
    return Source(
        name=hide_addresses(str(entry.name or entry.path)),
        files=(f"{entry.name}{at}[{split}]",) if dataset is not None else tuple(map(str, paths)),
        paths=paths,
        format=entry.format,
        columns=entry.columns,
        weight=entry.weight,
        probability=entry.probability,
        max_rows=entry.max_rows,
        dataset=dataset,
    )
