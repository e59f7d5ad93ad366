"""The training and validation splits: from sources of their own, or a share of the training rows set aside."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from sft.common.errors import DataError
from sft.data.preparation import SourcePreparation
from sft.data.prepared import PreparedSource, Split
from sft.data.sources.load import OpenedSources, Source
from sft.data.store import PreparedRows


def prepare_splits(preparation: SourcePreparation, sources: OpenedSources, seed: int) -> tuple[Split, Split | None]:
    """Prepare the training rows and the validation rows, if there are any.

    Args:
        preparation: Prepares each source. With `streaming`, it prepares the first rows of training sources only.
        sources: All sources of the run.
        seed: Seed of `validation_split`.

    Raises:
        DataError: If a source cannot be read, or `validation_split` leaves one of the splits empty.
    """
    config = preparation.config
    prepare_train = preparation.prepare_sample if config.streaming else partial(preparation.prepare, "train")
    train = _as_split(sources.train, [prepare_train(source) for source in sources.train])
    if sources.validation:
        prepared = [preparation.prepare("validation", source) for source in sources.validation]
        return train, _as_split(sources.validation, prepared)
    if config.validation_split is None or not len(train.rows):
        return train, None
    kept, held_out = _split_off(train.rows, config.validation_split, seed, train.prepared[0].files[0])
    return replace(train, rows=kept), replace(train, rows=held_out)


def _as_split(sources: tuple[Source, ...], prepared: list[PreparedSource]) -> Split:
    return Split(sources=sources, prepared=tuple(prepared), rows=PreparedRows([source.rows for source in prepared]))


def _split_off(rows: PreparedRows, share: float, seed: int, name: str) -> tuple[PreparedRows, PreparedRows]:
    """Hold out a share of the rows, chosen by seed; both parts keep their order.

    Duplicates stay together, and so do rows that `row_function` made of one row, which may be alike.

    Args:
        rows: All rows.
        share: Share of the rows to hold out, between 0 and 1.
        seed: Seed of the choice.
        name: The file to name in an error.

    Returns:
        The remaining rows and the held-out rows.

    Raises:
        DataError: If one of the two would be empty.
    """
    count = len(rows)
    wanted = round(count * share)
    _, first, group = np.unique(_groups(rows), return_index=True, return_inverse=True)
    # Number the groups of equal rows by their first row.
    group = np.argsort(np.argsort(first))[group]
    sizes = np.bincount(group)
    chosen = np.zeros(len(sizes), dtype=bool)
    taken = 0
    for number in np.random.default_rng(seed).permutation(len(sizes)):
        if taken + sizes[number] <= wanted:
            chosen[number] = True
            taken += sizes[number]
        if taken == wanted:
            break
    if not 0 < taken < count:
        raise DataError(
            f"{name}: validation_split {share} of {count} rows leaves {taken} rows for validation and {count - taken} "
            "for training. Each split needs at least one row."
        )
    return rows.select(np.flatnonzero(~chosen[group])), rows.select(np.flatnonzero(chosen[group]))


def _groups(rows: PreparedRows) -> np.ndarray:
    """A number for each row, the same for rows that must not be separated."""
    columns = rows.columns()
    made = np.flatnonzero(columns.part)
    if not len(made):
        return columns.digest
    _, group = np.unique(columns.digest, return_inverse=True)
    raw = np.stack([rows.source_indices()[made], columns.number[made]])
    _, raw_row = np.unique(raw, axis=1, return_inverse=True)
    # Rows made of one row join the lowest of their groups, and with them the duplicates, until nothing changes.
    while True:
        lowest = np.full(raw_row.max() + 1, len(rows))
        np.minimum.at(lowest, raw_row, group[made])
        joined = np.arange(len(rows))
        np.minimum.at(joined, group[made], lowest[raw_row])
        if (joined[group] == group).all():
            return group
        group = joined[group]
