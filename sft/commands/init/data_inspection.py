"""Inspects the first rows of training data: format, columns, lengths, rows that cannot be used, validation data."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from sft.commands.init.findings import DataInfo
from sft.commands.paths import looks_like_a_path
from sft.common.data_records import Conversation, RawRow, RowProblem
from sft.common.did_you_mean import did_you_mean
from sft.common.errors import DataError, ModelError
from sft.common.files import is_address
from sft.common.hub_names import full_name_hint
from sft.common.outside_files import outside_file
from sft.configuration.schema import DataConfig
from sft.data.source_format import RENAMING_HINT, find_source_format
from sft.data.sources.files import SPLIT_WORDS
from sft.data.sources.load import OpenedSources, Source, open_sources
from sft.prompting.formats import UNANSWERABLE, RecordFormat
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer

MAX_ROWS = 20_000
_TOKENS_PER_MESSAGE = 8
"""An upper limit for what most chat templates add to a message."""
_TOKENS_PER_ROW = 48
"""Allowance for what a template adds to a conversation: a system prompt, a date."""
_MAX_COUNTED_ROWS = 200
"""The longest rows by estimate, which are counted by the tokenizer."""
_BYTES_PER_TOKEN = 2.5
"""Less than text has in most languages, so that estimates are rather too high."""
_PROMPT_WORDS = ("question", "query", "prompt", "instruction", "input", "user", "human", "request", "source")
_ANSWER_WORDS = ("answer", "response", "output", "reply", "completion", "assistant", "target", "solution", "chosen")

_RENAMING_HINT = " Rename them in the data, or write the configuration by hand, with dataset_columns."


def inspect_data(name: str, tokenizer_file: str | None) -> DataInfo:
    """Inspect a file, a folder or a glob. A dataset on the Hub is not inspected.

    Args:
        name: path or name, as given.
        tokenizer_file: `tokenizer.json` of the model, to count tokens, with the chat template in the same folder; None
            to estimate them.

    Raises:
        DataError: if there is no such data, no row can be used, or the columns match no format.
    """
    path = Path(name).expanduser()
    is_glob = any(character in name for character in "*?[")
    if not path.exists() and not is_glob and not is_address(name):
        if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not looks_like_a_path(name) and not path.parent.is_dir():
            return DataInfo(name=name, key="dataset_name")
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) or full_name_hint(name, "dataset")
        raise DataError(f"no file or folder {name!r}.{hint}")
    opened = open_sources(DataConfig(train_file=name if is_address(name) else str(path)))
    source, record_format, chunks = _with_format(opened.train[0])
    loaded = None if tokenizer_file is None else _load_renderer(Path(tokenizer_file).parent)
    counts = _RowCounts(record_format, source.columns, _token_counter(tokenizer_file), loaded and loaded[0])
    for chunk in chunks:
        counts.add(chunk.rows())
        if counts.rows >= MAX_ROWS:
            break
    else:
        counts.is_complete = True
    if not counts.max_tokens:
        raise DataError(f"no row of {name} can be used: {counts.first_bad or 'no question has an answer'}")
    max_tokens, texts = counts.max_tokens, [text for _, _, text in counts.longest_rows if text is not None]
    if loaded is not None and not counts.is_plain_text:
        max_tokens = max(map(len, loaded[1](texts, add_special_tokens=False, verbose=False)["input_ids"]))
    validation, is_found = _validation_beside(opened, path)
    ours = {source.columns.get(name, name) for name in counts.columns}
    return DataInfo(
        name=name,
        files=source.files,
        format_name=record_format.name,
        columns=tuple(counts.columns),
        unused_columns=tuple(sorted(ours - record_format.columns - record_format.optional)),
        dataset_columns=source.columns,
        num_rows=counts.rows,
        is_complete=counts.is_complete,
        num_unanswerable=counts.unanswerable,
        num_bad_rows=counts.bad,
        first_bad_row=counts.first_bad,
        max_tokens=max_tokens,
        mean_tokens=counts.tokens / counts.usable,
        are_tokens_counted=tokenizer_file is not None and (counts.is_plain_text or loaded is not None),
        validation=validation,
        is_validation_found=is_found,
    )


class _RowCounts:
    """Counts of the rows read so far."""

    def __init__(
        self,
        record_format: RecordFormat,
        columns: Mapping[str, str],
        count: Callable[[str], int],
        renderer: ChatRenderer | None,
    ):
        self._format, self._names, self._count, self._renderer = record_format, columns, count, renderer
        self.rows = self.bad = self.unanswerable = 0
        self.longest_rows: list[tuple[int, int, str | None]] = []
        """A heap of the longest rows: estimated tokens, number of the row, its text if it is rendered."""
        self.tokens = self.usable = 0
        self.first_bad = ""
        self.columns: dict[str, None] = {}
        self.is_complete = False
        self.is_plain_text = True

    @property
    def max_tokens(self) -> int:
        """Estimated tokens of the longest row; 0 if no row can be used."""
        return max((tokens for tokens, _, _ in self.longest_rows), default=0)

    def add(self, rows: Sequence[RawRow]) -> None:
        """Count rows, rendered together as a run does."""
        converted = [self._convert(row) for row in rows]
        chats = [each for each in converted if isinstance(each, Conversation) and each.is_chat]
        rendered = iter(self._renderer.render_all(chats) if self._renderer is not None else [None] * len(chats))
        for row, outcome in zip(rows, converted, strict=True):
            self.rows += 1
            if isinstance(outcome, Conversation):
                text = next(rendered) if outcome.is_chat else None
                if not isinstance(text, RowRefused):
                    self.is_plain_text &= not outcome.is_chat
                    self._keep(_estimate_tokens(outcome, self._count), None if text is None else text.text)
                    continue
                outcome = text.problem
            if outcome.reason == UNANSWERABLE:
                self.unanswerable += 1
            else:
                self.bad += 1
                self.first_bad = self.first_bad or f"{row.source}: {outcome.message}"

    def _convert(self, row: RawRow) -> Conversation | RowProblem:
        """The conversation of a row, or why it cannot be used."""
        if row.problem is not None or row.record is None:
            return row.problem or RowProblem(reason="no_record", message="it is empty")
        self.columns.update(dict.fromkeys(row.record))
        try:
            return self._format.convert({self._names.get(name, name): value for name, value in row.record.items()})
        except RowRefused as refused:
            return refused.problem

    def _keep(self, tokens: int, text: str | None) -> None:
        self.tokens, self.usable = self.tokens + tokens, self.usable + 1
        entry = (tokens, self.rows, text)
        if len(self.longest_rows) < _MAX_COUNTED_ROWS:
            heapq.heappush(self.longest_rows, entry)
        else:
            heapq.heappushpop(self.longest_rows, entry)


def _load_renderer(folder: Path) -> tuple[ChatRenderer, Any] | None:
    """The chat template of the tokenizer in a folder, and the tokenizer; None if it has none, or cannot be loaded.

    Raises:
        ConfigError: if the template cannot render a question and an answer, as a run would.
    """
    try:
        with outside_file(f"{folder}: the tokenizer cannot be loaded", ModelError):
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            tokenizer("a b")  # some values only fail when they are used
    except ModelError:
        return None  # one that needs remote code, for example: use the estimate
    return (ChatRenderer(tokenizer), tokenizer) if isinstance(tokenizer.chat_template, str | dict) else None


def _estimate_tokens(conversation: Conversation, count: Callable[[str], int]) -> int:
    """Estimate the tokens of a row, with an allowance for the chat template."""
    if conversation.tokens is not None:
        return len(conversation.tokens.input_ids)
    if conversation.text is not None:
        return count(conversation.text) + 1
    texts = [*_texts(conversation.messages), *_texts(conversation.tools or ())]
    return sum(map(count, texts)) + _TOKENS_PER_MESSAGE * len(conversation.messages) + _TOKENS_PER_ROW


def _texts(value: Any) -> Iterator[str]:
    """Yield all strings in a nested value."""
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
        return lambda text: round(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN) + 1
    with outside_file(f"{tokenizer_file}: cannot be read", ModelError):
        tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _with_format(source: Source) -> tuple[Source, RecordFormat, Iterator[Any]]:
    """Return the source with its format; if no format matches, map the columns by their names and try again."""
    try:
        return source, *find_source_format(source)
    except DataError as error:
        columns = _columns_of(source)
        mapped = _guess_columns(columns)
        if mapped is None:
            raise DataError(str(error).replace(RENAMING_HINT, _RENAMING_HINT)) from None
        source = replace(source, columns=mapped)
        return source, *find_source_format(source)


def _columns_of(source: Source) -> list[str]:
    """Return the columns of the first row that can be read."""
    for chunk in source.chunks():
        for row in chunk.rows():
            if row.record:
                return list(row.record)
    return []


def _guess_columns(columns: Sequence[str]) -> dict[str, str] | None:
    """Map the one column named like a prompt and the one named like an answer; None if there are several or none."""
    prompts = [name for name in columns if _is_named(name, _PROMPT_WORDS)]
    answers = [name for name in columns if _is_named(name, _ANSWER_WORDS)]
    if len(prompts) != 1 or len(answers) != 1 or prompts == answers:
        return None
    pairs = {prompts[0]: "prompt", answers[0]: "completion"}
    return {theirs: ours for theirs, ours in pairs.items() if theirs != ours}


def _is_named(column: str, words: Iterable[str]) -> bool:
    return any(word in words for word in re.split(r"[^a-z]+", column.lower()))


def _validation_beside(opened: OpenedSources, path: Path) -> tuple[str | None, bool]:
    """Return validation data in the same folder, and whether a run finds it without a setting.

    For a single training file, it is the file whose name differs only in the word for the split.
    """
    if opened.validation:
        return ", ".join(opened.validation[0].files[:3]), True
    parts = re.split(r"([A-Za-z]+)", path.name)
    positions = [number for number, part in enumerate(parts) if SPLIT_WORDS.get(part.lower()) == "train"]
    if not path.is_file() or not positions:
        return None, False
    words = [word for word, split in SPLIT_WORDS.items() if split in ("validation", "test")]
    names = ["".join([*parts[: positions[-1]], word, *parts[positions[-1] + 1 :]]) for word in words]
    return next((str(path.with_name(name)) for name in names if path.with_name(name).is_file()), None), False
