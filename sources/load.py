"""From the data settings to raw rows by split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration.schema import DataConfig
from sft_errors import DataError
from sft_types import RawRow, RowSource
from sources.files import find_files, group_by_split
from sources.readers import read_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSplit:
    """The rows of one split as read, and the names of the files (or dataset) that they come from."""

    rows: Sequence[RawRow]
    origins: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RawData:
    """All rows as read; `unused` names what lies beside them and was not read."""

    train: RawSplit
    validation: RawSplit | None = None
    unused: tuple[str, ...] = ()


def load_rows(config: DataConfig) -> RawData:
    """Reads every row that the settings name.

    Raises:
        DataError: if something cannot be found or read, or holds no row.
    """
    if config.dataset_name is not None:
        return _load_named_dataset(config)
    if config.train_file is not None:
        folder = Path(config.dataset_path or ".") / config.train_file
        if folder.is_dir():
            return _load_folder(folder, config)
        return RawData(
            train=_read_files(find_files(config.train_file, config.dataset_path)), validation=_validation_file(config)
        )
    return _load_folder(Path(config.dataset_path or "."), config)


def _load_folder(folder: Path, config: DataConfig) -> RawData:
    """A folder (or file) whose file names tell the splits apart."""
    files = find_files(str(folder))
    groups = {"train": files} if folder.is_file() else group_by_split(files, folder)
    if "train" not in groups:
        names = ", ".join(str(path) for group in groups.values() for path in group[:3])
        raise DataError(f"{folder}: no training file among {names}. Name it with train_file.")
    validation = _validation_file(config)
    if validation is None and "validation" in groups and config.validation_split is None:
        validation = _read_files(groups.pop("validation"))
    unused = [str(path) for name, group in groups.items() if name != "train" for path in group]
    return RawData(train=_read_files(groups["train"]), validation=validation, unused=tuple(unused))


def _validation_file(config: DataConfig) -> RawSplit | None:
    if config.validation_file is None:
        return None
    return _read_files(find_files(config.validation_file, config.dataset_path))


def _read_files(files: Sequence[Path]) -> RawSplit:
    rows = [row for file in files for row in read_rows(file)]
    origins = tuple(str(file) for file in files)
    if not rows:
        raise DataError(f"{', '.join(origins)}: no rows in there.")
    return RawSplit(rows=rows, origins=origins)


def _load_named_dataset(config: DataConfig) -> RawData:
    """A dataset of the `datasets` library: saved on disk, a folder of files, or on the Hub."""
    folder = Path(str(config.dataset_name)).expanduser()
    saved_by_library = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    if folder.is_dir() and not saved_by_library and config.dataset_config_name is None:
        return _load_folder(folder, config)
    splits = _load_splits(config, folder if saved_by_library else None)
    if "train" not in splits:
        raise DataError(f"{config.dataset_name}: no split 'train'; there: {', '.join(splits)}.")
    validation = _validation_file(config)
    if validation is None and "validation" in splits and config.validation_split is None:
        validation = _split_from_dataset(config.dataset_name, "validation", splits.pop("validation"))
    train = _split_from_dataset(config.dataset_name, "train", splits.pop("train"))
    return RawData(
        train=train, validation=validation, unused=tuple(f"{config.dataset_name}[{name}]" for name in splits)
    )


def _load_splits(config: DataConfig, saved_folder: Path | None) -> dict[str, Any]:
    """The splits of a named dataset by name.

    Raises:
        DataError: one line for what the library says in many.
    """
    import datasets

    name, configuration = config.dataset_name, config.dataset_config_name
    try:
        if saved_folder is not None:
            loaded = datasets.load_from_disk(str(saved_folder))
        else:
            loaded = datasets.load_dataset(name, configuration)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"dataset_name {name!r}: not found: {_first_line(error)}") from None
    except OSError as error:
        what = "cannot be read" if saved_folder is not None else "the Hub cannot be reached"
        raise DataError(f"dataset_name {name!r}: {what}: {_first_line(error)}") from None
    except (ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        # An unknown or missing configuration name arrives here; the message lists the known ones.
        raise DataError(f"dataset_name {name!r}, dataset_config_name {configuration!r}: {_first_line(error)}") from None
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _split_from_dataset(name: str | None, split: str, dataset: Any) -> RawSplit:
    origin = f"{name}[{split}]"

    def rows() -> Iterator[RawRow]:
        for number, record in enumerate(dataset, start=1):
            yield RawRow(source=RowSource(file=origin, line=number), record=record)

    if len(dataset) == 0:
        raise DataError(f"{origin}: no rows in there.")
    return RawSplit(rows=list(rows()), origins=(origin,))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[:2]).rstrip(".") + "."
