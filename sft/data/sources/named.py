"""Datasets of the `datasets` library, saved on disk or on the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, get_token

from sft.common.device_errors import is_device_error
from sft.common.errors import DataError
from sft.common.files import refuse_special_files
from sft.common.hub_errors import hub_problem
from sft.common.hub_names import full_name_hint
from sft.common.optional_packages import missing_package
from sft.common.outside_files import reason
from sft.data.sources.arrow_values import ArrowValues
from sft.data.sources.chunks import MAX_BYTES, MAX_ROWS, Entries, RowBlock, entry_blocks
from sft.data.sources.json_rows import checked_record

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of a `Dataset` or a `DatasetDict`."""
    if (folder / "dataset_dict.json").is_file():
        return True
    return (folder / "state.json").is_file() and (
        (folder / "dataset_info.json").is_file() or any(folder.glob("*.arrow"))
    )


def load_splits(
    name: str,
    configuration: str | None,
    split: str | None,
    *,
    revision: str | None = None,
    streaming: bool = False,
    key: str = "dataset_name",
) -> "dict[str, Dataset | IterableDataset]":
    """Load the splits of a dataset by name. For a slice (`train[:10%]`), only that slice, under this name.

    Args:
        name: Name on the Hub, or a folder.
        configuration: Name of a configuration of the dataset.
        split: A split, or a slice of one.
        revision: Branch, tag or commit of its repository on the Hub.
        streaming: Read rows lazily from their location, without storing them.
        key: The key of the settings that names it, for messages.

    Raises:
        DataError: If it cannot be loaded, in one line.
    """
    try:
        import datasets  # an optional package
    except ImportError:
        instead = " Or set train_file to read files." if key == "dataset_name" else ""
        raise DataError(f"{key} {name!r} {missing_package('datasets')}.{instead}") from None
    folder = Path(name).expanduser()
    refuse_special_files(DataError, *sorted(folder.glob("**/*")))
    is_saved = is_saved_dataset(folder)
    try:
        if is_saved:
            loaded = datasets.load_from_disk(str(folder))
        elif split is not None and set(split) & set("[+"):
            slices = datasets.load_dataset(name, configuration, split=split, revision=revision, streaming=streaming)
            loaded = {split: slices}
        else:
            loaded = datasets.load_dataset(name, configuration, revision=revision, streaming=streaming)
    except Exception as error:
        problem = None if folder.exists() else _hub_problem(error)
        hint = "" if folder.exists() else full_name_hint(name, "dataset")
        if problem is not None:
            raise DataError(f"{key} {name!r}: {problem}{hint}") from None
        if isinstance(error, OSError):
            raise DataError(f"{key} {name!r}: cannot be read: {_first_line(error)}{hint}") from None
        if isinstance(error, ValueError | LookupError | RuntimeError | datasets.exceptions.DatasetsError):
            # For example an unknown or missing configuration name (with a list of the known ones), an unknown split in
            # a slice, or a dataset that is a script, which the library refuses to run.
            which = f", dataset_config_name {configuration!r}" if key == "dataset_name" else ""
            raise DataError(f"{key} {name!r}{which}: {_first_line(error)}{hint}") from None
        if is_device_error(error):
            raise
        raise DataError(f"{key} {name!r}: cannot be read: {reason(error)}.{hint}") from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def read_dataset(dataset: "Dataset | IterableDataset", file: str) -> Iterator[tuple[RowBlock, float]]:
    """The rows of a dataset in order. The line of a row is its number, from 1.

    Yields:
        A block of rows, and the share of the dataset read so far, 0 to 1 (0 if unknown).
    """
    values = ArrowValues(None if dataset.features is None else dataset.features.arrow_schema)
    if not hasattr(dataset, "__len__"):
        # Count a row as 1 KiB, to get blocks of a moderate size.
        records = enumerate(_every_row(dataset), start=1)
        entries = ((number, checked_record(values(record)), number << 10) for number, record in records)
        yield from ((block, 0.0) for block, _ in entry_blocks(file, entries))
        return
    total = len(dataset)
    bytes_a_row = dataset.data.nbytes // max(len(dataset.data), 1)
    rows_at_once = max(1, min(MAX_ROWS, MAX_BYTES // max(bytes_a_row, 1)))
    for start in range(0, total, rows_at_once):
        columns = dataset[start : start + rows_at_once]
        block = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        end = start + len(block)
        checked = [checked_record(values(record)) for record in block]
        yield Entries(file=file, lines=range(start + 1, end + 1), entries=checked), end / total


def _every_row(dataset: "IterableDataset") -> Iterator[dict]:
    """All rows: in a worker of a data loader, `__iter__` would yield only the worker's share."""
    for batch in dataset.iter(batch_size=64):
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[:2]).rstrip(".") + "."


def _hub_problem(error: Exception) -> str | None:
    has_token = get_token() is not None
    return hub_problem(error, what="dataset", has_token=has_token, is_offline=constants.HF_HUB_OFFLINE)
