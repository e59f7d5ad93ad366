"""Data: sources -> rows -> conversations -> text with trained spans -> tokens and labels, every row counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sft.common.errors import ConfigError
from sft.common.shown_rows import ScoredPrompt
from sft.common.training_data import TrainingData
from sft.configuration.schema import DataConfig
from sft.data.counts import count_data, locate_row
from sft.data.examples import preview_rows, select_sample_prompts
from sft.data.mixtures import rows_of_epoch
from sft.data.preparation import SourcePreparation
from sft.data.prepared import PreparedSource, Split
from sft.data.scored_rows import select_scored_rows
from sft.data.sources.load import open_sources
from sft.data.splits import prepare_splits, rows_of_kind
from sft.data.streaming import open_stream
from sft.prompting.formats import RecordFormat
from sft.prompting.rendering import known_end_tokens

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
    """Read, render, tokenize and count all data.

    Prepared rows are cached in `data_cache_dir`. If several processes need the same rows, one of them prepares them and
    the others wait. This function does not judge whether the data is usable: see `sft.data.checks.find_problems`.

    Args:
        config: The data section of the configuration.
        tokenizer: A fast tokenizer. If it has no chat template and one is needed, it gets the template `plain`.
        seed: Seed of the validation split, and of the choice of rows where a source's `weight` is fractional.
        sample_prompts: Prompts to answer before and after training. None takes them from the first rows.
        show_rows: Numbers of training rows to preview, from 1 in the order of reading.
        order_seed: Seed of the order of streamed rows. Defaults to `seed`.
        on_progress: Called with True whenever rows have been prepared, and with False when a source is finished.

    Raises:
        DataError: If a source cannot be read, or its columns match no known format.
        ConfigError: If the tokenizer is not a fast one, or its chat template cannot render a plain exchange.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer_name_or_path: {type(tokenizer).__name__} does not report the character offsets of its tokens. "
            "Use a fast tokenizer (one with a tokenizer.json)."
        )
    sources = open_sources(config)
    if sources.unused:
        more = ", ..." if len(sources.unused) > 5 else ""
        logger.info("Not read: %s%s.", ", ".join(sources.unused[:5]), more)

    preparation = SourcePreparation(config, tokenizer, on_progress)
    train, validation, sets = prepare_splits(preparation, sources, seed)
    _log_settings_without_effect(config, [source.record_format for source in train.prepared])
    all_exhausted = config.datasets_stop == "all_exhausted"
    epoch_rows = train.rows if config.streaming else rows_of_epoch(train, seed, all_exhausted=all_exhausted)
    report = count_data(train, epoch_rows, validation, sets)
    stream_seed = seed if order_seed is None else order_seed
    stream = open_stream(preparation, train, seed=stream_seed).read if config.streaming else None
    return TrainingData(
        train=epoch_rows,
        validation=None if validation is None else validation.rows,
        validation_sets=rows_of_kind("validation", sets),
        test_sets=rows_of_kind("test", sets),
        forgetting_sets=rows_of_kind("forgetting", sets),
        is_chat=any(_has_chats(source, tokenizer) for source in train.prepared),
        scored=_scored_rows(preparation, validation, sets, config.answer_rows, seed),
        report=replace(report, is_complete=not config.streaming),
        sample_prompts=select_sample_prompts(sample_prompts, preparation, train, validation),
        previews=preview_rows(preparation, train, show_rows),
        stream=stream,
        locate_row=partial(locate_row, train, epoch_rows),
    )


def _scored_rows(
    preparation: SourcePreparation,
    validation: Split | None,
    sets: Mapping[tuple[str, str], Split],
    count: int,
    seed: int,
) -> dict[str, tuple[ScoredPrompt, ...]]:
    """The rows whose answers are scored, by set, with the name that it has in records."""
    if not count:
        return {}
    found = {f"{kind} {name}": split for (kind, name), split in sets.items() if kind != "forgetting"}
    if validation is not None and not any(kind == "validation" for kind, _ in sets):
        found["validation validation"] = validation
    return {name: select_scored_rows(preparation, split, count, seed, name) for name, split in found.items()}


def _log_settings_without_effect(config: DataConfig, formats: Sequence[RecordFormat]) -> None:
    if config.unanswerable is not None and not any(one.has_unanswerable for one in formats):
        logger.info("unanswerable has no effect: no training source is in the format squad.")
    if config.train_on != "all" and any(one.is_tokenized for one in formats):
        logger.info("train_on has no effect on rows of token ids: their labels and masks say what is trained.")
    if config.prompt_loss_weight and not all(one.is_chat for one in formats):
        logger.info("prompt_loss_weight has no effect on texts and rows of token ids: they have no prompts.")


def _has_chats(source: PreparedSource, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether rows of a source end as the chat template ends an answer; rows of token ids may."""
    may_end_so = source.record_format.is_tokenized and known_end_tokens(tokenizer) != [tokenizer.eos_token_id]
    return source.record_format.is_chat or may_end_so
