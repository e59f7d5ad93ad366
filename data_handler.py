"""Data: sources -> rows -> conversations -> text with trained spans -> tokens and labels, every row counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_all_start_methods, get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from batching.layout import PaddedCollator
from configuration.did_you_mean import did_you_mean
from configuration.schema import DataConfig
from prompting.formats import FORMATS, RecordFormat, find_format
from prompting.messages import RowRefused
from prompting.rendering import ChatRenderer, render_text
from prompting.templates import PLAIN, resolve_chat_template
from prompting.tokenizing import TokenizedRow, tokenize_rows
from sft_errors import ConfigError, DataError
from sft_types import (
    Conversation,
    DataReport,
    DroppedRow,
    RawRow,
    RenderedText,
    SamplePrompt,
    SplitReport,
    TrainingData,
)
from sources.load import RawSplit, load_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("sft.data")
ROWS_AT_ONCE = 512
LISTED_BAD_ROWS = 10
SAMPLE_PROMPTS = 3


def prepare_data(
    config: DataConfig, tokenizer: "PreTrainedTokenizerBase", *, seed: int, sample_prompts: Sequence[str] | None = None
) -> TrainingData:
    """Reads, renders, tokenizes and counts all data. A tokenizer without a chat template gets `plain` if it needs one.

    Every process prepares the same data for itself: nothing waits at a barrier.

    Args:
        config: the data section.
        tokenizer: its chat template may be set here.
        seed: of the validation split.
        sample_prompts: prompts to answer before and after training; None takes the first of the data.

    Raises:
        DataError: if nothing can be trained on, or a row is bad and `on_bad_rows` is `error`.
        ConfigError: if the tokenizer or its chat template cannot do what is needed.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"tokenizer_name_or_path: {type(tokenizer).__name__} cannot tell which characters a token stands for. "
            "Use a fast tokenizer (a tokenizer.json)."
        )
    raw = load_rows(config)
    if raw.unused:
        logger.info("Not read: %s.", ", ".join(raw.unused[:5]) + (", ..." if len(raw.unused) > 5 else ""))
    train = _prepare_split("train", raw.train, config, tokenizer)
    validation = raw.validation and _prepare_split("validation", raw.validation, config, tokenizer)
    if validation is None and config.validation_split is not None:
        train, validation = _split_off(train, config.validation_split, seed)
    prompts = _given_prompts(sample_prompts, train.is_chat) if sample_prompts is not None else None
    return TrainingData(
        train=train.dataset(),
        validation=validation and validation.dataset(),
        collator=PaddedCollator(tokenizer.pad_token_id),
        report=DataReport(train=train.report, validation=validation and validation.report),
        sample_prompts=prompts if prompts is not None else (validation or train).first_prompts(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _PreparedSplit:
    """The rows of a split that are used, with what they were made from."""

    rows: Sequence[TokenizedRow]
    conversations: Sequence[Conversation]
    report: SplitReport
    is_chat: bool

    def dataset(self) -> "Dataset":
        """The rows in Arrow, columns `input_ids` and `labels` as lists of int32."""
        import datasets
        import pyarrow

        columns = {name: _as_lists([getattr(row, name) for row in self.rows]) for name in ("input_ids", "labels")}
        return datasets.Dataset(pyarrow.table(columns))

    def select(self, indices: Sequence[int]) -> "_PreparedSplit":
        """These rows alone, counted anew; dropped rows stay with neither part."""
        rows = [self.rows[index] for index in indices]
        conversations = [self.conversations[index] for index in indices]
        report = replace(self.report, rows_read=len(rows), rows_used=len(rows), dropped=())
        return replace(self, rows=rows, conversations=conversations, report=_with_token_counts(report, rows))

    def first_prompts(self) -> tuple[SamplePrompt, ...]:
        return tuple(_as_prompt(conversation) for conversation in self.conversations[:SAMPLE_PROMPTS])


def _prepare_split(
    split: str, raw: RawSplit, config: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> _PreparedSplit:
    columns = _columns_of(raw, config)
    record_format = _choose_format(raw, columns)
    more = f" and {len(raw.origins) - 3} more" if len(raw.origins) > 3 else ""
    origins = ", ".join(raw.origins[:3]) + more
    logger.info("%s: %s, read as %s.", split.capitalize(), origins, record_format.description)
    unused = sorted(columns - record_format.columns - record_format.optional)
    if unused:
        logger.info("%s: columns not used: %s.", split.capitalize(), _listed(unused))
    if record_format.is_chat and tokenizer.chat_template is None:
        use_plain_template(tokenizer)
    worker = _RowPreparer(config=config, record_format=record_format, tokenizer=tokenizer)
    used: list[TokenizedRow] = []
    conversations: list[Conversation] = []
    dropped: list[DroppedRow] = []
    for row, outcome in zip(raw.rows, _prepare_all(worker, raw.rows, config.preprocessing_num_workers), strict=True):
        if isinstance(outcome, RowRefused):
            dropped.append(DroppedRow(source=row.source, problem=outcome.problem))
        else:
            conversation, tokens = outcome
            conversations.append(conversation)
            used.append(tokens)
    report = SplitReport(
        format_name=record_format.name,
        files=raw.origins,
        rows_read=len(raw.rows),
        rows_used=len(used),
        dropped=tuple(dropped),
    )
    _refuse_bad_rows(split, report, config)
    return _PreparedSplit(
        rows=used,
        conversations=conversations,
        report=_with_token_counts(report, used),
        is_chat=record_format.is_chat,
    )


def use_plain_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Gives a tokenizer without a chat template the plain one, and says so."""
    begins_with_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = resolve_chat_template(PLAIN, begins_with_bos=begins_with_bos)
    logger.info(
        "The tokenizer has no chat template: using `plain` (User: / Assistant: lines, each answer ends with %s).",
        tokenizer.eos_token,
    )


def _chat_renderer(tokenizer: "PreTrainedTokenizerBase") -> Callable[[Conversation], RenderedText]:
    renderer = ChatRenderer(tokenizer)
    if not renderer.end_marker.strip():
        logger.warning("The chat template writes nothing behind an answer: the model will not learn where to stop.")
    return renderer.render


class _RowPreparer:
    """Raw rows to tokens, a batch at a time; goes to worker processes as a whole."""

    def __init__(self, *, config: DataConfig, record_format: RecordFormat, tokenizer: "PreTrainedTokenizerBase"):
        self._columns = config.dataset_columns
        self._format = record_format
        self._tokenizer = tokenizer
        self._max_seq_length = config.max_seq_length
        self._render = _chat_renderer(tokenizer) if record_format.is_chat else render_text

    def __call__(self, rows: Sequence[RawRow]) -> list[tuple[Conversation, TokenizedRow] | RowRefused]:
        outcomes: list[Any] = []
        rendered, places = [], []
        for row in rows:
            try:
                if row.problem is not None:
                    raise RowRefused(row.problem.reason, row.problem.message)
                conversation = self._format.convert(_renamed(row.record, self._columns))
                rendered.append(self._render(conversation))
                places.append(len(outcomes))
                outcomes.append(conversation)
            except RowRefused as refusal:
                outcomes.append(refusal)
        tokens = tokenize_rows(self._tokenizer, rendered, self._max_seq_length, is_chat=self._format.is_chat)
        for place, outcome in zip(places, tokens, strict=True):
            outcomes[place] = outcome if isinstance(outcome, RowRefused) else (outcomes[place], outcome)
        return outcomes


def _prepare_all(worker: _RowPreparer, rows: Sequence[RawRow], num_workers: int) -> Iterator[Any]:
    """Each row's outcome in order, from this process or from several."""
    batches = _batches(rows)
    if num_workers == 1 or len(rows) <= ROWS_AT_ONCE:
        for batch in batches:
            yield from worker(batch)
        return
    # A forked process starts at once and shares what is loaded; not every system can fork.
    context = get_context("fork" if "fork" in get_all_start_methods() else None)
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        for outcomes in pool.map(worker, batches):
            yield from outcomes


def _batches(rows: Sequence[RawRow]) -> Iterator[list[RawRow]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROWS_AT_ONCE)):
        yield batch


def _columns_of(raw: RawSplit, config: DataConfig) -> set[str]:
    """All the columns that the rows of a split have, by our names.

    Raises:
        DataError: if there are none, or `dataset_columns` names one that is not there, or one twice.
    """
    place, names = raw.origins[0], config.dataset_columns
    seen: Counter[str] = Counter(name for row in raw.rows if row.record is not None for name in row.record)
    if not seen:
        raise DataError(f"{raw.rows[0].source}: {_first_problem(raw)}. No row there can be used.")
    for column in names:
        if column not in seen:
            hint = did_you_mean(column, seen)
            raise DataError(f"{place}: dataset_columns names {column!r}; the columns are {_listed(seen)}.{hint}")
    ours = Counter(names.get(name, name) for name in seen)
    twice = [name for name, count in ours.items() if count > 1]
    if twice:
        theirs = [name for name in seen if names.get(name, name) == twice[0]]
        raise DataError(f"{place}: with dataset_columns, {' and '.join(theirs)} are both {twice[0]!r}. Choose one.")
    return set(ours)


def _choose_format(raw: RawSplit, columns: set[str]) -> RecordFormat:
    """The format of a split with these columns.

    Raises:
        DataError: if they make none.
    """
    record_format = find_format(columns)
    if record_format is None:
        known = "; ".join(known.description for known in FORMATS)
        raise DataError(
            f"{raw.origins[0]}: its columns ({_listed(sorted(columns))}) make no known format. Known: {known}. "
            "Map yours with dataset_columns: {their_name: our_name}."
        )
    return record_format


def _first_problem(raw: RawSplit) -> str:
    problem = raw.rows[0].problem
    return problem.message if problem is not None else "an object without fields"


def _listed(names: Iterable[str]) -> str:
    """Columns' names for one line of text, whatever they hold."""
    names = [" ".join(name.split())[:40] for name in names]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> Mapping[str, Any]:
    return {names.get(key, key): value for key, value in record.items()} if names else record


def _refuse_bad_rows(split: str, report: SplitReport, config: DataConfig) -> None:
    """Raises DataError if a row is bad and bad rows are an error, or if no row is left."""
    bad = report.dropped
    if bad and config.on_bad_rows == "error":
        lines = [f"{row.source}: {row.problem.message} ({row.problem.reason})." for row in bad[:LISTED_BAD_ROWS]]
        more = f", the first {LISTED_BAD_ROWS} above" if len(bad) > LISTED_BAD_ROWS else ""
        lines.append(
            f"{len(bad)} of {report.rows_read} {split} rows cannot be used{more}. Mend them, or write "
            "on_bad_rows: skip to leave them out and count them."
        )
        raise DataError(*lines)
    if report.rows_used == 0:
        counts = ", ".join(f"{count} {reason}" for reason, count in report.rows_dropped.items())
        raise DataError(f"{report.files[0]}: none of its {report.rows_read} rows can be used: {counts}.")


def _with_token_counts(report: SplitReport, rows: Sequence[TokenizedRow]) -> SplitReport:
    return replace(
        report,
        rows_truncated=sum(row.was_truncated for row in rows),
        rows_without_their_end=sum(row.lost_its_end for row in rows),
        tokens=sum(len(row.input_ids) for row in rows),
        supervised_tokens=sum(row.num_supervised for row in rows),
        longest_row=max((len(row.input_ids) for row in rows), default=0),
    )


def _split_off(train: _PreparedSplit, share: float, seed: int) -> tuple[_PreparedSplit, _PreparedSplit]:
    """Sets a share of the rows aside, chosen by seed, the order kept. Dropped rows stay in the training counts."""
    count = len(train.rows)
    num_validation = round(count * share)
    if not 0 < num_validation < count:
        raise DataError(
            f"{train.report.files[0]}: validation_split {share} of {count} rows leaves {num_validation} for validation "
            f"and {count - num_validation} for training; both need one."
        )
    chosen = set(np.random.default_rng(seed).permutation(count)[:num_validation].tolist())
    rest = train.select([index for index in range(count) if index not in chosen])
    dropped = train.report.dropped
    rest = replace(rest, report=replace(rest.report, rows_read=rest.report.rows_used + len(dropped), dropped=dropped))
    return rest, train.select(sorted(chosen))


def _as_lists(arrays: Sequence[np.ndarray]) -> Any:
    """Arrays of int32 as one Arrow column of lists, without a detour through Python numbers."""
    import pyarrow

    offsets = np.zeros(len(arrays) + 1, dtype=np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int32)
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values, type=pyarrow.int32()))


def _given_prompts(prompts: Sequence[str], is_chat: bool) -> tuple[SamplePrompt, ...]:
    if is_chat:
        return tuple(SamplePrompt(messages=({"role": "user", "content": prompt},)) for prompt in prompts)
    return tuple(SamplePrompt(text=prompt) for prompt in prompts)


def _as_prompt(conversation: Conversation) -> SamplePrompt:
    """What comes before a conversation's last answer, and that answer; of plain text, its first words."""
    if conversation.text is not None:
        words = conversation.text.split()
        return SamplePrompt(text=" ".join(words[: max(1, min(8, len(words) // 2))]))
    last = max(index for index, message in enumerate(conversation.messages) if message["role"] == "assistant")
    return SamplePrompt(
        messages=conversation.messages[:last],
        tools=conversation.tools,
        reference=conversation.messages[last]["content"],
    )
