"""Raw rows to tokens and labels, one chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    SHORTENED,
    THOUGHTS_LEFT_OUT,
    TOOLS_LEFT_OUT,
    TRAINED_END,
    RowColumns,
)
from sft.prompting.chat_settings import NO_SETTINGS, ChatSettings
from sft.prompting.control_tokens import ControlTokens
from sft.prompting.formats import RecordFormat
from sft.prompting.given_tokens import as_rendered
from sft.prompting.loss_weights import WEIGHT_COLUMN, row_weight
from sft.prompting.messages import RowRefused
from sft.prompting.pieces import Pieces, TooLong
from sft.prompting.quoted_tokens import QuotedTokens
from sft.prompting.rendering import ChatRenderer, render_text
from sft.prompting.shortening import Outcome, keep_last_turns
from sft.prompting.template_kwargs import kwargs_key
from sft.prompting.tokenizing import RowTokenizer, RowTooLong, TokenizedRow, TokenizedRows, joined_rows

NOTE_FLAGS = {
    "thoughts_left_out": THOUGHTS_LEFT_OUT,
    "content_left_out": CONTENT_LEFT_OUT,
    "tools_left_out": TOOLS_LEFT_OUT,
    "prompt_goes_further": PROMPT_GOES_FURTHER,
}
"""Notes of the renderer -> bit of `RowColumns.flags`."""
SPLIT_ROWS, SHORTENED_ROWS = "split into pieces", "shortened to the latest turns that fit"
WITHOUT_PADDING = "padding removed (zeros of attention_mask)"
"""What was changed of rows: names under which they are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedChunk:
    """The usable rows of a chunk, concatenated, and the counts of the dropped ones. Sent between processes."""

    input_ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None
    """See `TokenizedRows`, as for the other arrays."""
    lengths: np.ndarray
    columns: RowColumns
    rows_read: int
    untrained_pieces: int
    """Pieces of split rows that are left out, since they have no supervised token."""
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
        too_long: TooLong,
        steps: RowSteps = NO_STEPS,
        chats: ChatSettings = NO_SETTINGS,
    ):
        """
        Args:
            record_format: Converts records to conversations.
            columns: Column name of the source -> our name.
            tokenizer: Tokenizes rendered rows.
            renderer: Renders conversations; None for a format of plain text or of tokens.
            control_tokens: Finds control tokens in conversations.
            too_long: What becomes of rows that are too long.
            steps: What the user's functions do to raw rows.
            chats: What the settings add to conversations.
        """
        self._chats = chats
        self._steps = steps
        self._format = record_format
        self._columns = columns
        self._tokenize = tokenizer
        self._control_tokens = control_tokens
        self._too_long = too_long
        render_plain = _render_tokens if record_format.is_tokenized else partial(_render_texts, control_tokens.quotes)
        self._render_all: Callable[[Sequence[Conversation]], list[RenderedText | RowRefused]] = (
            render_plain if renderer is None else renderer.render_all
        )

    def __call__(self, chunk: Chunk) -> PreparedChunk:
        """Prepare the rows of a chunk."""
        made = [self.made(row) for row in chunk.rows()]
        numbers = np.repeat(np.arange(1, len(made) + 1), [len(rows) for rows in made])
        rows = list(chain.from_iterable(made))
        num_read = len(made)
        del made
        seen_columns = frozenset(chain.from_iterable(row.record for row in rows if row.record is not None))
        sources = [row.source for row in rows]
        conversations = self._converted(rows)
        del rows  # their records are as large as the conversations
        rendered, whole = self._tokenized(conversations, sources)
        rendered_numbers = [number for number, text in enumerate(rendered) if not isinstance(text, RowRefused)]
        pieces = self._too_long.split(whole)
        tokens, first_pieces = pieces.tokens, np.flatnonzero(pieces.number <= 1).tolist()
        for index, refusal in tokens.refusals.items():
            rendered[rendered_numbers[index]] = refusal
        used: list[int] = []
        texts: list[RenderedText] = []
        dropped, remarks = DroppedRows(), CountedRemarks()
        for number, (source, outcome) in enumerate(zip(sources, rendered, strict=True)):
            if isinstance(outcome, RowRefused):
                dropped.add(source, outcome)
            else:
                piece = first_pieces[len(used)]
                found = self.remarks(
                    cast(Conversation, conversations[number]),
                    outcome,
                    split_tokens=tokens.split_tokens.get(piece, ()),
                    changes=_changes(
                        outcome, is_split=bool(pieces.number[piece]), is_shortened=piece in tokens.shortened
                    ),
                )
                for kind, names in found.items():
                    if names:
                        remarks.add(source, kind, names)
                used.append(number)
                texts.append(outcome)
        return PreparedChunk(
            input_ids=tokens.input_ids,
            labels=tokens.labels,
            weights=tokens.weights,
            lengths=tokens.lengths,
            columns=RowColumns(
                num_supervised=tokens.num_supervised.astype(np.int32),
                full_length=tokens.full_length.astype(np.int32),
                flags=_flags(texts, pieces),
                digest=_digests([conversations[number] for number in used])[pieces.row],
                number=numbers[used].astype(np.int64)[pieces.row],
                file=np.full(len(pieces.row), chunk.file_index, dtype=np.int32),
                line=np.asarray([sources[number].line for number in used], dtype=np.int64)[pieces.row],
                part=np.asarray([sources[number].part for number in used], dtype=np.int32)[pieces.row],
                piece=pieces.number,
            ),
            rows_read=num_read,
            untrained_pieces=pieces.num_untrained,
            dropped=dropped,
            remarks=remarks,
            seen_columns=seen_columns,
        )

    def made(self, row: RawRow) -> list[RawRow]:
        """The rows that a raw row becomes: the row itself, unless there is a `row_function` or a `row_filter`."""
        return self._steps(row)

    def prepare(self, rows: Sequence[RawRow]) -> list[tuple[Conversation, RenderedText, TokenizedRow] | RowRefused]:
        """The conversation, text and tokens of each row of `made`, or why it cannot be used. Nothing is split."""
        conversations = self._converted(rows)
        rendered, tokenized = self._tokenized(conversations, [row.source for row in rows])
        tokens = _map_unrefused(lambda _: tokenized.split(), rendered)
        # Where there are tokens, there are a conversation and a text.
        return [
            row if isinstance(row, RowRefused) else (cast(Conversation, conversation), cast(RenderedText, text), row)
            for conversation, text, row in zip(conversations, rendered, tokens, strict=True)
        ]

    def pieces(self, text: RenderedText, row: TokenizedRow) -> tuple[list[TokenizedRow], tuple[str, ...]]:
        """The pieces that a row is split into, usually one, and what was changed, as for `remarks`.

        Raises:
            RowRefused: If no piece has a supervised token.
        """
        is_split = self._too_long.splits(len(row.input_ids))
        return self._too_long.pieces(row), _changes(text, is_split=is_split, is_shortened=row.is_shortened)

    def remarks(
        self,
        conversation: Conversation,
        text: RenderedText,
        *,
        split_tokens: Sequence[str] = (),
        changes: Sequence[str] = (),
    ) -> dict[str, Sequence[str]]:
        """Field of `CountedRemarks` -> names under which a usable row is counted."""
        return {
            "unread_keys": text.unread_keys,
            "control_tokens": self._control_tokens(conversation, text.text),
            "split_tokens": [repr(token) for token in split_tokens],
            "changes": (*conversation.changes, *changes),
            "template_kwargs": [kwargs_key(conversation.template_kwargs)] if conversation.template_kwargs else (),
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
        conversation = self._format.convert(record)
        if self._format.is_chat:
            conversation = self._chats.applied(conversation, record)
        weight = row_weight(record) if WEIGHT_COLUMN in record else 1.0
        return conversation if weight == 1 else replace(conversation, weight=weight)

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
            changes=self.pieces(text, tokens)[1],
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

    def _tokenized(
        self, conversations: Sequence[Conversation | RowRefused], sources: Sequence[RowSource]
    ) -> tuple[list[RenderedText | RowRefused], TokenizedRows]:
        """The text of each row, or why there is none, and the tokens of those that have one.

        Conversations that are too long are shortened, where that is what becomes of them.
        """
        rendered = self._render(conversations, sources)
        texts = [text for text in rendered if not isinstance(text, RowRefused)]
        tokens = self._tokenize(texts)
        too_long = {index: one for index, one in tokens.refusals.items() if isinstance(one, RowTooLong)}
        if not (self._too_long.shortens and too_long):
            return rendered, tokens
        numbers = [number for number, text in enumerate(rendered) if not isinstance(text, RowRefused)]

        def render(shorter: Sequence[Conversation]) -> list[Outcome]:
            found = self._render(shorter, sources)
            tokenized = _map_unrefused(lambda texts: self._tokenize(texts).split(), found)
            return [
                row if isinstance(row, RowRefused) else (cast(RenderedText, text), row)
                for text, row in zip(found, tokenized, strict=True)
            ]

        given = [cast(Conversation, conversations[numbers[index]]) for index in too_long]
        outcomes = tokens.split()
        for index, outcome in zip(too_long, keep_last_turns(given, [*too_long.values()], render), strict=True):
            if isinstance(outcome, RowRefused):
                outcomes[index] = outcome
            else:
                rendered[numbers[index]], outcomes[index] = outcome
        return rendered, joined_rows(outcomes)

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


def _render_texts(
    quotes: QuotedTokens | None, conversations: Sequence[Conversation]
) -> list[RenderedText | RowRefused]:
    rendered: list[RenderedText | RowRefused] = []
    for conversation in conversations:
        try:
            rendered.append(render_text(conversation, quotes))
        except RowRefused as refusal:
            rendered.append(refusal)
    return rendered


def _render_tokens(conversations: Sequence[Conversation]) -> list[RenderedText | RowRefused]:
    return [as_rendered(conversation) for conversation in conversations]


def _changes(text: RenderedText, *, is_split: bool, is_shortened: bool) -> tuple[str, ...]:
    """What was changed of a row, by the names under which it is counted."""
    has_padding = text.tokens is not None and text.tokens.has_padding
    changed = {SPLIT_ROWS: is_split, SHORTENED_ROWS: is_shortened, WITHOUT_PADDING: has_padding}
    return tuple(name for name, is_so in changed.items() if is_so)


def _map_unrefused(step: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
    """Apply a step to the items that are not refusals, all together. Refusals keep their positions."""
    results = iter(step([item for item in items if not isinstance(item, RowRefused)]))
    return [item if isinstance(item, RowRefused) else next(results) for item in items]


def _digests(conversations: Sequence[Conversation | RowRefused]) -> np.ndarray:
    """`RowColumns.digest` of the usable rows."""
    return np.asarray([conversation_digest(cast(Conversation, one)) for one in conversations], dtype=np.uint64)


def _flags(texts: Sequence[RenderedText], pieces: Pieces) -> np.ndarray:
    """`RowColumns.flags` of the pieces of usable rows. `texts` are those of the rows."""
    tokens = pieces.tokens
    flags = np.where(tokens.has_trained_end, TRAINED_END, 0).astype(np.uint8)
    lost = np.where(tokens.lost_end, LOST_END, LOST_PROMPT).astype(np.uint8)
    lost[list(tokens.shortened)] = SHORTENED
    flags |= np.where((tokens.full_length > tokens.lengths) & (pieces.number == 0), lost, np.uint8(0))
    notes = np.zeros(len(texts), dtype=np.uint8)
    for row, text in enumerate(texts):
        for note in text.notes:
            notes[row] |= NOTE_FLAGS[note]
    return flags | notes[pieces.row]
