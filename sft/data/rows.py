"""Raw rows to tokens and labels, one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np

from sft.common.data_records import Conversation, RawRow, RenderedText, RowPreview, RowSource
from sft.common.errors import ConfigError
from sft.data.digest import conversation_digest
from sft.data.dropped import DroppedRows
from sft.data.remarks import CountedRemarks
from sft.data.row_functions import NO_STEPS, RowSteps
from sft.data.sources.load import Chunk
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
from sft.prompting.control_tokens import ControlTokens
from sft.prompting.formats import RecordFormat
from sft.prompting.messages import RowRefused
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.tokenizing import RowTokenizer, TokenizedRow, TokenizedRows

NOTE_FLAGS = {
    "thoughts_left_out": THOUGHTS_LEFT_OUT,
    "content_left_out": CONTENT_LEFT_OUT,
    "tools_left_out": TOOLS_LEFT_OUT,
    "prompt_goes_further": PROMPT_GOES_FURTHER,
}
"""Notes of the renderer -> bit of `RowColumns.flags`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedChunk:
    """The usable rows of a chunk, concatenated, and the counts of the dropped ones. Sent between processes."""

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    columns: RowColumns
    rows_read: int
    dropped: DroppedRows
    remarks: CountedRemarks
    seen_columns: frozenset[str]


class RowPreparer:
    """Prepares the rows of one source. Pickled as a whole into worker processes."""

    def __init__(
        self,
        record_format: RecordFormat,
        columns: Mapping[str, str],
        tokenizer: RowTokenizer,
        renderer: ChatRenderer | None,
        control_tokens: ControlTokens,
        steps: RowSteps = NO_STEPS,
    ):
        """
        Args:
            record_format: Converts records to conversations.
            columns: Column name of the source -> our name.
            tokenizer: Tokenizes rendered rows.
            renderer: Renders conversations; None for a format of plain text.
            control_tokens: Finds control tokens in conversations.
            steps: What the user's functions do to raw rows.
        """
        self._steps = steps
        self._format = record_format
        self._columns = columns
        self._tokenize = tokenizer
        self._control_tokens = control_tokens
        self._render_all: Callable[[Sequence[Conversation]], list[RenderedText | RowRefused]] = (
            _render_texts if renderer is None else renderer.render_all
        )

    def __call__(self, chunk: Chunk) -> PreparedChunk:
        """Prepare the rows of a chunk."""
        read = chunk.rows()
        made = [self.made(row) for row in read]
        numbers = np.repeat(np.arange(1, len(read) + 1), [len(rows) for rows in made])
        rows = list(chain.from_iterable(made))
        num_read = len(read)
        del read, made
        seen_columns = frozenset(chain.from_iterable(row.record for row in rows if row.record is not None))
        sources = [row.source for row in rows]
        conversations = self._converted(rows)
        del rows  # their records are as large as the conversations
        rendered = self._render(conversations, sources)
        rendered_numbers = [number for number, text in enumerate(rendered) if not isinstance(text, RowRefused)]
        tokens = self._tokenize([text for text in rendered if not isinstance(text, RowRefused)])
        for index, refusal in tokens.refusals.items():
            rendered[rendered_numbers[index]] = refusal
        used: list[int] = []
        texts: list[RenderedText] = []
        dropped, remarks = DroppedRows(), CountedRemarks()
        for number, (source, outcome) in enumerate(zip(sources, rendered, strict=True)):
            if isinstance(outcome, RowRefused):
                dropped.add(source, outcome)
            else:
                split = tokens.split_tokens.get(len(used), ())
                for kind, names in self.remarks(cast(Conversation, conversations[number]), outcome, split).items():
                    if names:
                        remarks.add(source, kind, names)
                used.append(number)
                texts.append(outcome)
        return PreparedChunk(
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            lengths=tokens.lengths,
            columns=RowColumns(
                num_supervised=tokens.num_supervised.astype(np.int32),
                full_length=tokens.full_length.astype(np.int32),
                flags=_flags(texts, tokens),
                digest=_digests([conversations[number] for number in used]),
                number=numbers[used].astype(np.int64),
                file=np.full(len(used), chunk.file_index, dtype=np.int32),
                line=np.asarray([sources[number].line for number in used], dtype=np.int64),
                part=np.asarray([sources[number].part for number in used], dtype=np.int32),
            ),
            rows_read=num_read,
            dropped=dropped,
            remarks=remarks,
            seen_columns=seen_columns,
        )

    def made(self, row: RawRow) -> list[RawRow]:
        """The rows that a raw row becomes: the row itself, unless there is a `row_function` or a `row_filter`."""
        return self._steps(row)

    def prepare(self, rows: Sequence[RawRow]) -> list[tuple[Conversation, RenderedText, TokenizedRow] | RowRefused]:
        """The conversation, text and tokens of each row of `made`, or why the row cannot be used."""
        conversations = self._converted(rows)
        rendered = self._render(conversations, [row.source for row in rows])
        tokens = _map_unrefused(lambda texts: self._tokenize(texts).split(), rendered)
        # Where there are tokens, there are a conversation and a text.
        return [
            row if isinstance(row, RowRefused) else (cast(Conversation, conversation), cast(RenderedText, text), row)
            for conversation, text, row in zip(conversations, rendered, tokens, strict=True)
        ]

    def remarks(
        self, conversation: Conversation, text: RenderedText, split_tokens: Sequence[str]
    ) -> dict[str, Sequence[str]]:
        """Field of `CountedRemarks` -> names under which a usable row is counted."""
        return {
            "unread_keys": text.unread_keys,
            "control_tokens": self._control_tokens(conversation, text.text),
            "split_tokens": [repr(token) for token in split_tokens],
        }

    def convert(self, row: RawRow) -> Conversation:
        """The conversation of a row of `made`.

        Raises:
            RowRefused: If the row cannot be read or converted.
        """
        if row.problem is not None:
            raise RowRefused(row.problem.reason, row.problem.message)
        record = row.record
        assert record is not None  # a row without a problem has one
        if self._columns:
            record = {self._columns.get(name, name): value for name, value in record.items()}
        return self._format.convert(record)

    def preview(self, number: int, row: RawRow) -> RowPreview:
        """A row of `made` as text, split into trained and untrained segments."""
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

    def _converted(self, rows: Sequence[RawRow]) -> list[Conversation | RowRefused]:
        """The conversation of each row, or why there is none."""
        conversations: list[Conversation | RowRefused] = []
        for row in rows:
            try:
                conversations.append(self.convert(row))
            except RowRefused as refusal:
                conversations.append(refusal)
        return conversations

    def _render(
        self, conversations: Sequence[Conversation | RowRefused], sources: Sequence[RowSource]
    ) -> list[RenderedText | RowRefused]:
        """The text of each row, or why there is none.

        Raises:
            ConfigError: If the chat template takes more than it may.
        """
        try:
            return _map_unrefused(self._render_all, conversations)
        except ConfigError as error:
            # The chat template took more time or memory than it may.
            ordered = sorted(sources, key=lambda source: (source.file, source.line))
            raise ConfigError(f"{error} The conversations are those of {ordered[0]} to {ordered[-1]}.") from None


def _render_texts(conversations: Sequence[Conversation]) -> list[RenderedText | RowRefused]:
    return [render_text(conversation) for conversation in conversations]


def _map_unrefused(step: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """Apply a step to the items that are not refusals, all together. Refusals keep their positions."""
    results = iter(step([item for item in items if not isinstance(item, RowRefused)]))
    return [item if isinstance(item, RowRefused) else next(results) for item in items]


def _digests(conversations: Sequence[Conversation | RowRefused]) -> np.ndarray:
    """`RowColumns.digest` of the usable rows."""
    return np.asarray([conversation_digest(cast(Conversation, one)) for one in conversations], dtype=np.uint64)


def _flags(texts: Sequence[RenderedText], tokens: TokenizedRows) -> np.ndarray:
    """`RowColumns.flags` of the usable rows."""
    flags = np.where(tokens.has_trained_end, TRAINED_END, 0).astype(np.uint8)
    lost = np.where(tokens.lost_end, LOST_END, LOST_PROMPT).astype(np.uint8)
    flags |= np.where(tokens.full_length > tokens.lengths, lost, np.uint8(0))
    for row, text in enumerate(texts):
        for note in text.notes:
            flags[row] |= NOTE_FLAGS[note]
    return flags
