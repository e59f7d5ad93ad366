"""Checks of data sources and streaming."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft.common.chat_arguments import RESERVED_KWARGS, system_prompt_text
from sft.common.did_you_mean import did_you_mean
from sft.common.files import is_address, matching_paths
from sft.common.function_files import function_problem
from sft.common.hub_names import full_name
from sft.configuration.checks.contradiction import Contradiction, current_directory, did_you_mean_file
from sft.configuration.data_sections import SKIP
from sft.configuration.evaluation_sets import SETS_OF_FILES, files_of_sets
from sft.configuration.schema import RECORD_FORMATS, DatasetSource, SFTConfig

_LIKE_ACTIONS = {"skip", "drop", "error", "ignore", "keep", "truncate", "remove", "true", "false", "none", "null"}
"""Words that are meant as an action, not as an answer."""

NO_REVISION = "{name!r} is a folder, and only a repository on the Hub has revisions; remove it."


PROBABILITY_ERROR = 0.001
"""By which a sum of probabilities may differ from 1 (0.333 three times)."""


def check_data(config: SFTConfig) -> Iterator[Contradiction]:
    """Check that there is exactly one source of training rows, that files exist, and what streaming excludes."""
    data = config.data
    for key in ("train_file", "dataset_path"):
        if data.dataset_name and getattr(data, key):
            yield Contradiction(key, "conflicts with dataset_name, which already gives the training data; choose one.")
    if not (data.datasets or data.dataset_name or data.train_file or data.dataset_path):
        yield Contradiction("train_file", "no training data; set train_file, dataset_path, dataset_name or datasets.")
    if data.dataset_config_name and not data.dataset_name:
        yield Contradiction("dataset_config_name", "requires dataset_name.")
    if data.dataset_revision and not data.dataset_name:
        yield Contradiction("dataset_revision", "requires dataset_name.")
    elif data.dataset_revision and os.path.isdir(str(data.dataset_name)):
        yield Contradiction("dataset_revision", NO_REVISION.format(name=data.dataset_name))
    if isinstance(data.validation_file, str) and data.validation_split:
        yield Contradiction(
            "validation_split",
            "conflicts with validation_file; choose one, or name the files: validation_file: {name: file}.",
        )
    if data.split_overlap and data.on_too_long != "split":
        yield Contradiction("split_overlap", "requires on_too_long: split.")
    if data.split_overlap >= data.max_seq_length:
        yield Contradiction(
            "split_overlap", f"must be below max_seq_length ({data.max_seq_length}), but is {data.split_overlap}."
        )
    if data.datasets_stop != "first_exhausted" and not any(entry.probability for entry in data.datasets):
        yield Contradiction("datasets_stop", "requires the key probability in each entry of datasets.")
    answer = data.unanswerable
    if answer is not None and (not answer.strip() or (answer != SKIP and answer.strip().lower() in _LIKE_ACTIONS)):
        yield Contradiction("unanswerable", f'{answer!r} is neither skip nor a text to answer, like "I don\'t know.".')
    for key in ("row_function", "row_filter"):
        yield from _check_function(key, getattr(data, key))
    has_own = any(entry.system_prompt is not None for entry in data.datasets)
    if data.system_prompt_policy != "if_missing" and data.system_prompt is None and not has_own:
        yield Contradiction("system_prompt_policy", "requires system_prompt.")
    yield from _check_chats("", data.system_prompt, data.chat_template_kwargs)
    yield from _check_files(config)
    yield from _check_datasets(config)
    yield from _check_streaming(config)


def _check_files(config: SFTConfig) -> Iterator[Contradiction]:
    data = config.data
    folder = data.dataset_path
    if folder and not is_address(folder) and not os.path.exists(folder):
        yield Contradiction("dataset_path", f"no such file or folder: {data.dataset_path!r} {current_directory()}.")
        return
    if data.train_file is not None:
        yield from _check_path("train_file", data.train_file, folder=data.dataset_path)
    for key in SETS_OF_FILES:
        for name, file in files_of_sets(getattr(data, key)).items():
            yield from _check_path(key if name is None else f"{key}.{name}", file, folder=data.dataset_path)


def _check_datasets(config: SFTConfig) -> Iterator[Contradiction]:
    data = config.data
    if not data.datasets:
        return
    for key in ("train_file", "dataset_path", "dataset_name"):
        if getattr(data, key):
            yield Contradiction(key, "conflicts with datasets, which already gives the training data; choose one.")
    if data.dataset_columns:
        yield Contradiction("dataset_columns", "cannot be combined with datasets; set columns in each entry instead.")
    yield from _check_probabilities(data.datasets)
    for number, source in enumerate(data.datasets):
        yield from _check_source(f"datasets[{number}]", source)


def _check_probabilities(entries: Sequence[DatasetSource]) -> Iterator[Contradiction]:
    given = [number for number, source in enumerate(entries) if source.probability is not None]
    for number in given:
        if entries[number].weight != 1:
            key = f"datasets[{number}].probability"
            yield Contradiction(key, "conflicts with weight, which says how often each row is used; choose one.")
    if not given:
        return
    without = [f"datasets[{number}]" for number in range(len(entries)) if number not in given]
    total = sum(source.probability or 0.0 for source in entries)
    if without:
        yield Contradiction("datasets", f"probability must be set in all entries or in none; {without[0]} has none.")
    elif abs(total - 1) > PROBABILITY_ERROR:
        yield Contradiction("datasets", f"the probabilities of all entries must sum to 1, but their sum is {total:g}.")


def _check_source(key: str, source: DatasetSource) -> Iterator[Contradiction]:
    """Check one entry of `datasets`, whose key is `datasets[N]`."""
    if source.path and source.name:
        yield Contradiction(key, "path and name are mutually exclusive; choose one.")
    if not source.path and not source.name:
        yield Contradiction(key, "no data source; set path or name.")
    if source.config and not source.name:
        yield Contradiction(f"{key}.config", "requires name.")
    if source.revision and not source.name:
        yield Contradiction(f"{key}.revision", "requires name.")
    elif source.revision and os.path.isdir(str(source.name)):
        yield Contradiction(f"{key}.revision", NO_REVISION.format(name=source.name))
    if source.path:
        is_like_hub_id = re.fullmatch(r"[\w-]+/[\w-]+", source.path)
        hint = " To load a dataset from the Hugging Face Hub, use name." if is_like_hub_id else ""
        yield from _check_path(f"{key}.path", source.path, hint=hint)
    for name in ("row_function", "row_filter"):
        yield from _check_function(f"{key}.{name}", getattr(source, name))
    yield from _check_chats(f"{key}.", source.system_prompt, source.chat_template_kwargs)
    if source.format is not None and source.format not in RECORD_FORMATS:
        hint = did_you_mean(source.format, RECORD_FORMATS) or f" Allowed: {', '.join(RECORD_FORMATS)}."
        yield Contradiction(f"{key}.format", f"unknown format {source.format!r}.{hint}")


def _check_chats(entry: str, prompt: str | None, kwargs: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Check what the settings add to conversations; `entry` begins the names of the keys."""
    problem = None if prompt is None else system_prompt_text(prompt)[1]
    if problem is not None:
        yield Contradiction(f"{entry}system_prompt", problem)
    for name in sorted(set(kwargs) & RESERVED_KWARGS):
        yield Contradiction(f"{entry}chat_template_kwargs", f"{name!r} is given by the program; remove it.")


def _check_function(key: str, function: str | None) -> Iterator[Contradiction]:
    if function is not None and (problem := function_problem(function)) is not None:
        yield Contradiction(key, problem)


def _check_streaming(config: SFTConfig) -> Iterator[Contradiction]:
    data, sampling = config.data, config.training.passed_through.train_sampling_strategy
    if not data.streaming:
        return
    if config.training.max_steps < 1:
        yield Contradiction("streaming", "requires max_steps, because the number of rows is not known in advance.")
    if data.validation_split:
        yield Contradiction(
            "validation_split", "cannot be combined with streaming, which stores no rows; use validation_file."
        )
    if sampling == "group_by_length":
        yield Contradiction(
            "train_sampling_strategy",
            "group_by_length cannot be combined with streaming, because row lengths are not known in advance; choose "
            "one.",
        )
    if data.order == "by_length":
        yield Contradiction(
            "order", "by_length cannot be combined with streaming, because row lengths are not known in advance."
        )
    if sampling == "sequential":
        yield Contradiction(
            "train_sampling_strategy", "has no effect with streaming; for sequential order set shuffle_block_rows: 1."
        )
    for number, source in enumerate(data.datasets):
        if source.weight != 1 and source.probability is None:
            yield Contradiction(
                f"datasets[{number}].weight",
                "cannot be combined with streaming, which reads each source once; use probability.",
            )


def _check_path(key: str, name: str, *, folder: str | None = None, hint: str = "") -> Iterator[Contradiction]:
    """Check that a file, folder or glob exists.

    Args:
        key: key that gave the path.
        name: the path as given.
        folder: what it is relative to; None for the current directory.
        hint: appended to the message if no file beside it has a similar name.
    """
    if is_address(name) or is_address(folder or ""):
        return  # found when it is opened
    path = Path(folder or ".") / name
    if any(character in name for character in "*?["):
        try:
            matches = any(True for _ in matching_paths(name, folder))
        except (ValueError, NotImplementedError) as error:
            yield Contradiction(key, f"{name!r} is not a valid glob pattern: {error}.")
            return
        if not matches:
            yield Contradiction(key, f"no file matches {str(path)!r} {current_directory()}.")
    elif not os.path.exists(path):
        known = full_name(name, "dataset")
        if known is not None:
            way = f"use name: {known}" if key.endswith(".path") else f"set dataset_name: {known}"
            hint = f" To load the dataset from the Hugging Face Hub, {way}."
        hint = did_you_mean_file(path) or hint
        yield Contradiction(key, f"no such file or folder: {str(path)!r} {current_directory()}.{hint}")
