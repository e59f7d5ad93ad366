"""Data: sources -> rows -> conversations -> text with trained spans -> tokens and labels, every row counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from sft.common.data_records import SamplePrompt, TrainingData
from sft.common.errors import ConfigError, DataError
from sft.configuration.schema import DataConfig
from sft.data.counts import PreparedSource, data_report, split_report
from sft.data.examples import first_prompts, given_prompts, previews
from sft.data.preparation import SourcePreparation, format_named
from sft.data.sources.load import OpenedSources, Source, open_sources
from sft.data.store import PreparedRows
from sft.data.streaming import RowStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.data")


def prepare_data(
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    sample_prompts: Sequence[str] | None = None,
    show_rows: Collection[int] = (),
    order_seed: int | None = None,
    on_progress: Callable[[bool], None] | None = None,
) -> TrainingData:
    """Reads, renders, tokenizes and counts all data. A tokenizer without a chat template gets `plain` if it needs one.

    Prepared rows are kept in `data_cache_dir`; of several processes that want the same rows, one prepares them.
    Whether the data is sound is not judged here: see `sft.data.checks.find_problems`.

    Args:
        config: the data section.
        tokenizer: its chat template may be set here.
        seed: of the validation split, and of the rows that a source's `weight` leaves out.
        sample_prompts: prompts to answer before and after training; None takes the first of the data.
        order_seed: of the order of streamed rows; None for `seed`.
        show_rows: numbers of training rows, from 1 as they are read, to be previewed.
        on_progress: is told when rows were prepared (True), and when no more of a source are to be (False).

    Raises:
        DataError: if a source cannot be read, or has no row that makes a known format.
        ConfigError: if the tokenizer or its chat template cannot do what is needed.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer_name_or_path: {type(tokenizer).__name__} cannot tell which characters a token stands for. "
            "Use a fast tokenizer (a tokenizer.json)."
        )
    opened = open_sources(config)
    order_seed = seed if order_seed is None else order_seed
    if opened.unused:
        logger.info("Not read: %s.", ", ".join(opened.unused[:5]) + (", ..." if len(opened.unused) > 5 else ""))
    preparation = SourcePreparation(config, tokenizer, on_progress)
    train, validation = _prepare_splits(preparation, opened, seed)
    epoch_rows = _mixed(train, seed)
    report = data_report(
        (train.prepared, train.rows),
        split_report(train.prepared, train.rows, epoch_rows, all_read=True),
        validation and (validation.prepared, validation.rows),
        validation and split_report(validation.prepared, validation.rows, all_read=bool(opened.validation)),
    )
    return TrainingData(
        train=epoch_rows,
        validation=validation and validation.rows,
        is_chat=any(format_named(source.format_name).is_chat for source in train.prepared),
        report=replace(report, is_complete=not config.streaming),
        sample_prompts=_sample_prompts(sample_prompts, preparation, train, validation or train),
        previews=previews(preparation, train.opened, train.prepared, show_rows),
        stream=_stream(preparation, train, order_seed).read if config.streaming else None,
        place_of=partial(_place_of, train.prepared, epoch_rows),
    )


def _place_of(prepared: Sequence[PreparedSource], rows: PreparedRows, row: int) -> str:
    """Where a row stands, as `file:line`."""
    one = rows.select(np.array([row]))
    columns = one.columns()
    source = prepared[int(one.part_of_rows()[0])]
    return f"{source.files[int(columns.file[0])]}:{int(columns.line[0])}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Split:
    """Sources, what was prepared of them, and the rows of it that belong to the split, each once."""

    opened: Sequence[Source]
    prepared: Sequence[PreparedSource]
    rows: PreparedRows


def _sample_prompts(
    given: Sequence[str] | None, preparation: SourcePreparation, train: _Split, shown: _Split
) -> tuple[SamplePrompt, ...]:
    """The prompts that are given, as the training rows are; where none are, the first of `shown`."""
    if given is None:
        return first_prompts(preparation, shown.opened, shown.prepared, shown.rows)
    return given_prompts(given, is_chat=format_named(train.prepared[0].format_name).is_chat)


def _prepare_splits(preparation: SourcePreparation, opened: OpenedSources, seed: int) -> tuple[_Split, _Split | None]:
    """The training rows, and the validation rows from sources of their own or set aside from the training rows."""
    config = preparation.config
    prepare_train = preparation.look_at if config.streaming else partial(preparation.prepare, "train")
    prepared = [prepare_train(source) for source in opened.train]
    train = _Split(opened=opened.train, prepared=prepared, rows=PreparedRows([source.rows for source in prepared]))
    if opened.validation:
        prepared = [preparation.prepare("validation", source) for source in opened.validation]
        rows = PreparedRows([source.rows for source in prepared])
        return train, _Split(opened=opened.validation, prepared=prepared, rows=rows)
    if config.validation_split is None or not len(train.rows):
        return train, None
    rows, aside = _split_off(train.rows, config.validation_split, seed, train.prepared[0].files[0])
    return replace(train, rows=rows), replace(train, rows=aside)


def _stream(preparation: SourcePreparation, train: _Split, seed: int) -> RowStream:
    """The training rows as they are read."""
    formats = [format_named(source.format_name) for source in train.prepared]
    preparers = [preparation.preparer(*pair) for pair in zip(train.opened, formats, strict=True)]
    return RowStream(train.opened, preparers, seed=seed, block_rows=preparation.config.shuffle_block_rows)


def _split_off(rows: PreparedRows, share: float, seed: int, place: str) -> tuple[PreparedRows, PreparedRows]:
    """Sets a share of the rows aside, chosen by seed, the order kept. Duplicates of a row go where it goes.

    Raises:
        DataError: if one of both would be empty.
    """
    count = len(rows)
    wanted = round(count * share)
    _, first, group = np.unique(rows.columns().digest, return_index=True, return_inverse=True)
    # Groups of equal rows, numbered by their first row.
    group = np.argsort(np.argsort(first))[group]
    sizes = np.bincount(group)
    chosen = np.zeros(len(sizes), dtype=bool)
    taken = 0
    for one in np.random.default_rng(seed).permutation(len(sizes)):
        if taken + sizes[one] <= wanted:
            chosen[one] = True
            taken += sizes[one]
        if taken == wanted:
            break
    if not 0 < taken < count:
        raise DataError(
            f"{place}: validation_split {share} of {count} rows leaves {taken} for validation and {count - taken} for "
            "training; both need one."
        )
    return rows.select(np.flatnonzero(~chosen[group])), rows.select(np.flatnonzero(chosen[group]))


def _mixed(train: _Split, seed: int) -> PreparedRows:
    """The rows of an epoch: each row of a source as often as its weight says, a fraction chosen by seed."""
    if all(source.weight == 1 for source in train.prepared):
        return train.rows
    parts = train.rows.part_of_rows()
    taken: list[np.ndarray] = []
    for number, source in enumerate(train.prepared):
        own = np.flatnonzero(parts == number)
        whole = int(source.weight)
        rest = round((source.weight - whole) * len(own))
        chosen = np.random.default_rng([seed, number]).permutation(len(own))[:rest]
        taken += [own] * whole + [own[np.sort(chosen)]]
    return train.rows.select(np.concatenate(taken))
