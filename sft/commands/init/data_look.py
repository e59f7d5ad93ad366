"""The training data by its first rows: format, columns, length, rows that cannot be used, validation data beside it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sft.commands.init.facts import DataFacts
from sft.commands.init.model_look import looks_like_a_path
from sft.common.data_records import Conversation, RawRow
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import DataError, UserError
from sft.configuration.schema import DataConfig
from sft.data.source_format import find_source_format
from sft.data.sources.files import SPLIT_WORDS
from sft.data.sources.load import OpenedSources, Source, open_sources
from sft.prompting.formats import RecordFormat
from sft.prompting.messages import RowRefused
from sft.prompting.template import ChatTemplate

ROWS_LOOKED_AT = 20_000
_TOKENS_A_MESSAGE = 8
"""What a chat template writes around a message, at most in most; tokens."""
_TOKENS_A_ROW = 48
"""For what a template writes by itself: a system prompt, a date."""
_ROWS_COUNTED = 200
"""The longest by estimate; these few are written by the chat template and counted, which is slow for all."""
_BYTES_A_TOKEN = 2.5
"""Fewer than text in most languages has, so that an estimate is rather too long."""
_PROMPT_WORDS = ("question", "query", "prompt", "instruction", "input", "user", "human", "request", "source")
_ANSWER_WORDS = ("answer", "response", "output", "reply", "completion", "assistant", "target", "solution", "chosen")


def look_at_data(place: str, tokenizer_file: str | None) -> DataFacts:
    """What the data is: a file, a folder, a glob, or, not looked at, a dataset on the Hub.

    Args:
        place: as typed.
        tokenizer_file: `tokenizer.json` of the model, to count tokens with, by the chat template that lies beside it;
            None to estimate them.

    Raises:
        DataError: if there is no such thing, no row can be read, or its columns make no format.
    """
    path = Path(place).expanduser()
    is_glob = any(character in place for character in "*?[")
    if not path.exists() and not is_glob:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", place) and not looks_like_a_path(place) and not path.parent.is_dir():
            return DataFacts(place=place, key="dataset_name")
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no {place!r} here.{did_you_mean(path.name, siblings)}")
    opened = open_sources(DataConfig(train_file=str(path)))
    source, record_format, chunks = _with_format(opened.train[0])
    seen = _Rows(record_format, source.columns, _token_counter(tokenizer_file))
    for chunk in chunks:
        seen.add(chunk.rows())
        if seen.rows >= ROWS_LOOKED_AT:
            break
    else:
        seen.is_complete = True
    if not seen.longest:
        raise DataError(f"no row of {place} can be used: {seen.first_bad}")
    longest, is_counted = seen.longest, False
    if tokenizer_file is not None:
        longest, is_counted = _counted(seen, Path(tokenizer_file).parent)
    validation, is_found = _validation_beside(opened, path)
    ours = {source.columns.get(name, name) for name in seen.columns}
    return DataFacts(
        place=place,
        files=source.files,
        format_name=record_format.name,
        columns=tuple(seen.columns),
        unused_columns=tuple(sorted(ours - record_format.columns - record_format.optional)),
        mapped=source.columns,
        rows=seen.rows,
        is_complete=seen.is_complete,
        bad_rows=seen.bad,
        first_bad_row=seen.first_bad,
        longest_row=longest,
        are_tokens_counted=is_counted,
        validation=validation,
        is_validation_found=is_found,
    )


class _Rows:
    """Counts over the rows seen so far."""

    def __init__(self, record_format: RecordFormat, columns: Mapping[str, str], count: Callable[[str], int]):
        self._format, self._names, self._count = record_format, columns, count
        self.rows = self.bad = 0
        self.longest_rows: list[tuple[int, int, Conversation]] = []
        """A heap of the longest: estimated tokens, number of the row, the row."""
        self.first_bad = ""
        self.columns: dict[str, None] = {}
        self.is_complete = False

    @property
    def longest(self) -> int:
        """Tokens of the longest row by estimate; 0 where no row can be used."""
        return max((tokens for tokens, _, _ in self.longest_rows), default=0)

    def add(self, rows: Iterable[RawRow]) -> None:
        for row in rows:
            self.rows += 1
            problem = row.problem
            if problem is None:
                self.columns.update(dict.fromkeys(row.record))
                record = {self._names.get(name, name): value for name, value in row.record.items()}
                try:
                    conversation = self._format.convert(record)
                    self._keep(_num_tokens(conversation, self._count), conversation)
                    continue
                except RowRefused as refused:
                    problem = refused.problem
            self.bad += 1
            self.first_bad = self.first_bad or f"{row.source}: {problem.message}"

    def _keep(self, tokens: int, conversation: Conversation) -> None:
        entry = (tokens, self.rows, conversation)
        if len(self.longest_rows) < _ROWS_COUNTED:
            heapq.heappush(self.longest_rows, entry)
        else:
            heapq.heappushpop(self.longest_rows, entry)


def _counted(seen: _Rows, folder: Path) -> tuple[int, bool]:
    """Tokens of the longest row as the model's chat template writes it, and whether that could be counted."""
    if all(row.text is not None for _, _, row in seen.longest_rows):
        return seen.longest, True
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        template = ChatTemplate(tokenizer)
        texts = [template.apply(row.messages, row.tools) for _, _, row in seen.longest_rows if row.text is None]
    except (OSError, ValueError, KeyError, ImportError, UserError, RowRefused):
        # No template, one that refuses such rows, or a tokenizer that needs its own code: the estimate has to do.
        return seen.longest, False
    return max(map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])), True


def _num_tokens(conversation: Conversation, count: Callable[[str], int]) -> int:
    """Tokens of a row, with room for what a template adds."""
    if conversation.text is not None:
        return count(conversation.text) + 1
    texts = [*_texts(conversation.messages), *_texts(conversation.tools or ())]
    return sum(map(count, texts)) + _TOKENS_A_MESSAGE * len(conversation.messages) + _TOKENS_A_ROW


def _texts(value: Any) -> Iterator[str]:
    """Every text inside of a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _texts(inner)


def _token_counter(tokenizer_file: str | None) -> Callable[[str], int]:
    if tokenizer_file is None:
        return lambda text: round(len(text.encode("utf-8", "replace")) / _BYTES_A_TOKEN) + 1
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _with_format(source: Source) -> tuple[Source, RecordFormat, Iterator[Any]]:
    """The source with its format; where its columns make none, tried again with what their names say."""
    try:
        return source, *find_source_format(source)
    except DataError as error:
        columns = _columns_of(source)
        mapped = _guess_columns(columns)
        if mapped is None:
            raise DataError(str(error).split(" Map yours")[0]) from None
        source = replace(source, columns=mapped)
        return source, *find_source_format(source)


def _columns_of(source: Source) -> list[str]:
    """The columns of the first row that can be read."""
    for chunk in source.chunks():
        for row in chunk.rows():
            if row.record:
                return list(row.record)
    return []


def _guess_columns(columns: Sequence[str]) -> dict[str, str] | None:
    """The one column that is named like a prompt and the one that is named like an answer; None if not just one."""
    prompts = [name for name in columns if _is_named(name, _PROMPT_WORDS)]
    answers = [name for name in columns if _is_named(name, _ANSWER_WORDS)]
    if len(prompts) != 1 or len(answers) != 1 or prompts == answers:
        return None
    pairs = {prompts[0]: "prompt", answers[0]: "completion"}
    return {theirs: ours for theirs, ours in pairs.items() if theirs != ours}


def _is_named(column: str, words: Iterable[str]) -> bool:
    return any(word in words for word in re.split(r"[^a-z]+", column.lower()))


def _validation_beside(opened: OpenedSources, path: Path) -> tuple[str | None, bool]:
    """Validation data in the same folder, and whether a run takes it by itself.

    Of a single training file, the file whose name differs only by the word that tells its split.
    """
    if opened.validation:
        return ", ".join(opened.validation[0].files[:3]), True
    parts = re.split(r"([A-Za-z]+)", path.name)
    places = [number for number, part in enumerate(parts) if SPLIT_WORDS.get(part.lower()) == "train"]
    if not path.is_file() or not places:
        return None, False
    words = [word for word, split in SPLIT_WORDS.items() if split in ("validation", "test")]
    names = ["".join([*parts[: places[-1]], word, *parts[places[-1] + 1 :]]) for word in words]
    return next((str(path.with_name(name)) for name in names if path.with_name(name).is_file()), None), False
