"""Raw rows to tokens, a chunk at a time, in this process or in several."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import active_children, connection, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from sft.common.data_records import Conversation, DroppedRow, RawRow, RenderedText, RowPreview, RowSource
from sft.common.errors import DataError
from sft.configuration.schema import DataConfig
from sft.data.store import (
    CONTENT_LEFT_OUT,
    LOST_END,
    LOST_PROMPT,
    PROMPT_GOES_FURTHER,
    THOUGHTS_LEFT_OUT,
    TOOLS_LEFT_OUT,
    TRAINED_END,
    RowColumns,
)
from sft.processes.environment import tokenize_in_one_thread
from sft.prompting.formats import RecordFormat
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.tokenizing import RowTokenizer, RowTooLong, TokenizedRow, TokenizedRows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sft.data.sources.load import Chunk

EXAMPLES_OF_A_REASON = 10
"""Dropped rows of a reason that are remembered with their place; all are counted."""
CHUNKS_WITHOUT_HELP = 4
"""Data of at most so many chunks is prepared in this process: others would not have started by then."""
NOTE_FLAGS = {
    "thoughts_left_out": THOUGHTS_LEFT_OUT,
    "content_left_out": CONTENT_LEFT_OUT,
    "tools_left_out": TOOLS_LEFT_OUT,
    "prompt_goes_further": PROMPT_GOES_FURTHER,
}
"""Notes of the renderer, as they are kept beside a row."""


@dataclass(kw_only=True, slots=True)
class Refusals:
    """Rows that were counted out, as far as they are known: grows, but not with the number of rows."""

    counts: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    examples: list[DroppedRow] = field(default_factory=list)
    """The first of each reason, at most `EXAMPLES_OF_A_REASON`."""
    too_long: Counter[str] = field(default_factory=Counter)
    """What a cut would take (`answer`, `end`, `prompt`) -> rows that were dropped for their length."""
    full_lengths: Counter[int] = field(default_factory=Counter)
    """Tokens -> rows that were dropped for their length and have so many."""

    def add(self, source: RowSource, refusal: RowRefused) -> None:
        """One more row."""
        self.counts[refusal.problem.reason] += 1
        if self.counts[refusal.problem.reason] <= EXAMPLES_OF_A_REASON:
            self.examples.append(DroppedRow(source=source, problem=refusal.problem))
        if isinstance(refusal, RowTooLong):
            self.too_long[refusal.loses] += 1
            self.full_lengths[refusal.full_length] += 1

    def update(self, others: "Refusals") -> None:
        """All rows of others, which come later."""
        before = Counter(self.counts)
        for row in others.examples:
            before[row.problem.reason] += 1
            if before[row.problem.reason] <= EXAMPLES_OF_A_REASON:
                self.examples.append(row)
        self.counts.update(others.counts)
        self.too_long.update(others.too_long)
        self.full_lengths.update(others.full_lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedChunk:
    """The rows of a chunk that are used, one after another, and what became of the others; sent between processes."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    columns: RowColumns
    rows_read: int
    refusals: Refusals
    seen_columns: frozenset[str]


class RowPreparer:
    """Prepares the rows of one source. Goes to worker processes as a whole."""

    def __init__(
        self,
        config: DataConfig,
        tokenizer: "PreTrainedTokenizerBase",
        record_format: RecordFormat,
        columns: Mapping[str, str],
    ):
        """Args:
        config: the data section.
        tokenizer: with a chat template, where the format is one of chats.
        record_format: how records become conversations.
        columns: names of the source's columns -> ours.

        Raises:
            ConfigError: if the chat template cannot render a plain exchange.
        """
        self._columns = columns
        self._format = record_format
        end_token_ids = None
        if record_format.is_chat:
            renderer = ChatRenderer(
                tokenizer, only_last_turn=config.train_on == "last", add_end_token=config.add_end_token
            )
            self._render_all: Callable[[Sequence[Conversation]], list[RenderedText | RowRefused]] = renderer.render_all
            end_token_ids = renderer.end_token_ids()
        else:
            self._render_all = _render_texts
        self._tokenize = RowTokenizer(
            tokenizer,
            is_chat=record_format.is_chat,
            max_seq_length=config.max_seq_length,
            keep_too_long=config.on_too_long == "truncate",
            end_token_ids=end_token_ids,
        )

    def __call__(self, chunk: "Chunk") -> PreparedChunk:
        """The prepared rows of a chunk."""
        rows = chunk.rows()
        conversations, rendered = self._render(rows)
        whole = [number for number, text in enumerate(rendered) if not isinstance(text, RowRefused)]
        tokens = self._tokenize([rendered[number] for number in whole])
        for place, refusal in tokens.refusals.items():
            rendered[whole[place]] = refusal
        used, refusals = [], Refusals()
        for number, (row, outcome) in enumerate(zip(rows, rendered, strict=True)):
            if isinstance(outcome, RowRefused):
                refusals.add(row.source, outcome)
            else:
                used.append(number)
        return PreparedChunk(
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            lengths=tokens.lengths,
            columns=RowColumns(
                num_supervised=tokens.num_supervised.astype(np.int32),
                full_length=tokens.full_length.astype(np.int32),
                flags=_flags([rendered[number] for number in used], tokens),
                digest=np.asarray([_digest(conversations[number]) for number in used], dtype=np.uint64),
                number=np.asarray(used, dtype=np.int64) + 1,
                file=np.full(len(used), chunk.file_index, dtype=np.int32),
                line=np.asarray([rows[number].source.line for number in used], dtype=np.int64),
            ),
            rows_read=len(rows),
            refusals=refusals,
            seen_columns=frozenset(chain.from_iterable(row.record for row in rows if row.record is not None)),
        )

    def prepare(self, rows: Sequence[RawRow]) -> list[tuple[Conversation, RenderedText, TokenizedRow] | RowRefused]:
        """Each row's conversation, text and tokens; or why it cannot be used."""
        conversations, rendered = self._render(rows)
        tokens = _kept_all(lambda texts: self._tokenize(texts).apart(), rendered)
        return [
            row if isinstance(row, RowRefused) else (conversation, text, row)
            for conversation, text, row in zip(conversations, rendered, tokens, strict=True)
        ]

    def _render(
        self, rows: Sequence[RawRow]
    ) -> tuple[list[Conversation | RowRefused], list[RenderedText | RowRefused]]:
        """Each row's conversation and its text; or why it has none."""
        conversations = _kept(self.convert, rows)
        return conversations, _kept_all(self._render_all, conversations)

    def convert(self, row: RawRow) -> Conversation:
        """A raw row's conversation.

        Raises:
            RowRefused: if it has none.
        """
        if row.problem is not None:
            raise RowRefused(row.problem.reason, row.problem.message)
        record = row.record
        if self._columns:
            record = {self._columns.get(name, name): value for name, value in record.items()}
        return self._format.convert(record)

    def preview(self, number: int, row: RawRow) -> RowPreview:
        """A row as a person reads it, with what is trained told apart."""
        (outcome,) = self.prepare([row])
        if isinstance(outcome, RowRefused):
            return RowPreview(number=number, source=row.source, problem=outcome.problem)
        _, text, tokens = outcome
        return RowPreview(
            number=number,
            source=row.source,
            segments=self._tokenize.segments(text),
            num_tokens=len(tokens.input_ids),
            num_supervised=tokens.num_supervised,
            was_truncated=tokens.was_truncated,
        )


def prepare_chunks(
    preparer: RowPreparer, chunks: Iterable["Chunk"], num_workers: int
) -> Iterator[tuple["Chunk", PreparedChunk]]:
    """Chunks with their prepared rows, in order; in other processes where there are more than a few.

    At no time are more than a few chunks for each process in memory. Closed before its end, it ends the processes.

    Raises:
        DataError: if a process is killed, or cannot be started.
    """
    iterator = iter(chunks)
    first = list(islice(iterator, CHUNKS_WITHOUT_HELP + 1 if num_workers > 1 else 0))
    if len(first) <= CHUNKS_WITHOUT_HELP:
        for chunk in chain(first, iterator):
            yield chunk, preparer(chunk)
        return
    # A forked process starts at once and shares what is loaded; on other systems a fork with threads is not safe.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(preparer,))
    try:
        yield from _in_order(pool, chain(first, iterator), 2 * num_workers)
    except BrokenProcessPool:
        raise DataError(
            f"preprocessing_num_workers: one of {num_workers} processes that prepared rows was killed (out of "
            "memory?). Write a smaller number, or make memory free."
        ) from None
    finally:
        # Waits for the chunks that are in work, a moment each: a process that were ended while it hands one over would
        # leave half of it in the pipe, and whoever reads there would wait for the rest for good.
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, chunks: Iterable["Chunk"], num_ahead: int
) -> Iterator[tuple["Chunk", PreparedChunk]]:
    """Chunks as the processes of a pool prepare them; that many are sent ahead."""
    waiting: deque[tuple[Chunk, Future]] = deque()
    others = set(active_children())
    for chunk in chunks:
        try:
            waiting.append((chunk, pool.submit(_prepare_in_worker, chunk)))
        except OSError as error:
            # Those that could be started have no work yet, and nobody else would end them.
            for process in set(active_children()) - others:
                process.terminate()
            raise DataError(
                f"preprocessing_num_workers: so many processes cannot be started here: {error.strerror}. Write a "
                "smaller number."
            ) from None
        if len(waiting) > num_ahead:
            chunk, future = waiting.popleft()
            yield chunk, future.result()
    while waiting:
        chunk, future = waiting.popleft()
        yield chunk, future.result()


_preparer_of_worker: RowPreparer | None = None
"""Set once in each worker process: sent with every chunk, it would cost more than the chunk."""


def _start_worker(preparer: RowPreparer) -> None:
    global _preparer_of_worker
    _preparer_of_worker = preparer
    # Ctrl-C reaches every process of a terminal, and the parent says what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Thread(target=_end_with_parent, daemon=True).start()
    # The tokenizer's threads did not survive the fork; and each worker has one core.
    tokenize_in_one_thread()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and hold what it inherited: locks, memory."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def _prepare_in_worker(chunk: "Chunk") -> PreparedChunk:
    return _preparer_of_worker(chunk)


def _render_texts(conversations: Sequence[Conversation]) -> list[RenderedText | RowRefused]:
    return [render_text(conversation) for conversation in conversations]


def _kept(step: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    results = []
    for item in items:
        try:
            results.append(step(item))
        except RowRefused as refusal:
            results.append(refusal)
    return results


def _kept_all(step: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """What a step makes of the items that are no refusals, in their places; refusals stay."""
    results = iter(step([item for item in items if not isinstance(item, RowRefused)]))
    return [item if isinstance(item, RowRefused) else next(results) for item in items]


def _flags(texts: Sequence[RenderedText], tokens: TokenizedRows) -> np.ndarray:
    """`RowColumns.flags` of the rows that are used."""
    flags = np.where(tokens.has_trained_end, TRAINED_END, 0).astype(np.uint8)
    lost = np.where(tokens.lost_its_end, LOST_END, LOST_PROMPT).astype(np.uint8)
    flags |= np.where(tokens.full_length > tokens.lengths, lost, np.uint8(0))
    for row, text in enumerate(texts):
        for note in text.notes:
            flags[row] |= NOTE_FLAGS[note]
    return flags


def _digest(conversation: Conversation) -> int:
    """64 bits of a conversation, letter case and white space aside."""
    if conversation.text is not None:
        parts = [conversation.text]
    else:
        parts = []
        for message in conversation.messages:
            parts.append(message["role"])
            parts.append(message["content"])
            if len(message) > 2:
                rest = {key: value for key, value in message.items() if key not in ("role", "content")}
                parts.append(json.dumps(rest, sort_keys=True, default=str))
    if conversation.tools:
        parts.append(json.dumps(conversation.tools, sort_keys=True, default=str))
    text = "\x1f".join(" ".join(part.casefold().split()) for part in parts)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
