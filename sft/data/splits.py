"""The training and validation splits: from sources of their own, or a share of the training rows set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from sft.common.errors import DataError
from sft.configuration.evaluation_sets import HELD_OUT, UNNAMED
from sft.data.preparation import SourcePreparation
from sft.data.prepared import PreparedSource, Split
from sft.data.sources.load import OpenedSources, Source
from sft.data.store import PreparedRows


def prepare_splits(
    preparation: SourcePreparation, sources: OpenedSources, seed: int
) -> tuple[Split, Split | None, dict[tuple[str, str], Split]]:
    """Prepare the training rows, the validation rows, if there are any, and each set of rows to evaluate.

    The sets by kind and name: named sets of validation rows, test sets, and those of the forgetting check.

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
    parts = _prepared_sets(preparation, "validation_file", sources)
    if not parts and sources.validation:
        parts[None] = _prepared(preparation, "validation", sources.validation)
    if config.validation_split is not None and len(train.rows):
        kept, held_out = _split_off(train.rows, config.validation_split, seed, train.prepared[0].files[0])
        parts[HELD_OUT if parts else None] = replace(train, rows=held_out, num_own=0)
        train = replace(train, rows=kept)
    sets = {("validation", name): split for name, split in parts.items() if name is not None}
    for key in ("test_file", "forgetting_check"):
        found = _prepared_sets(preparation, key, sources)
        sets |= {(UNNAMED[key], name or UNNAMED[key]): split for name, split in found.items()}
    return train, _joined(list(parts.values())) if parts else None, sets


def _prepared_sets(preparation: SourcePreparation, key: str, sources: OpenedSources) -> dict[str | None, Split]:
    """The sets that a key of the settings names, by name; None for a single file."""
    kind = UNNAMED[key]
    return {
        name: _prepared(preparation, kind if name is None else f"{kind} {name}", (source,))
        for name, source in sources.sets[key].items()
    }


def rows_of_kind(kind: str, sets: Mapping[tuple[str, str], Split]) -> dict[str, PreparedRows]:
    """The rows of the sets of a kind, by name."""
    return {name: split.rows for (of_set, name), split in sets.items() if of_set == kind}


def _prepared(preparation: SourcePreparation, kind: str, sources: tuple[Source, ...]) -> Split:
    return _as_split(sources, [preparation.prepare(kind, source) for source in sources])


def _joined(splits: Sequence[Split]) -> Split:
    """One split of the rows of several, in their order. Held-out rows come last: see `Split.num_own`."""
    if len(splits) == 1:
        return splits[0]
    prepared = tuple(source for split in splits for source in split.prepared)
    starts = np.cumsum([0, *(sum(len(source.rows) for source in split.prepared) for split in splits)])
    index = np.concatenate([split.rows.index + start for split, start in zip(splits, starts, strict=False)])
    return Split(
        sources=tuple(source for split in splits for source in split.sources),
        prepared=prepared,
        rows=PreparedRows([source.rows for source in prepared], index),
        num_own=sum(len(split.own) for split in splits),
    )


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
