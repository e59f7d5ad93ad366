"""Single rows for a person to look at: read from their source again, where they stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from preparation.counts import PreparedSource
from preparation.sources import SourcePreparation, format_named
from prepared_data.store import PreparedRows
from sft_types import Conversation, RawRow, RowPreview, RowSource, SamplePrompt
from sources.load import Source

SAMPLE_PROMPTS = 3


def given_prompts(prompts: Sequence[str], *, is_chat: bool) -> tuple[SamplePrompt, ...]:
    """Prompts of the settings, as a question of the user or as the beginning of a text."""
    if is_chat:
        return tuple(SamplePrompt(messages=({"role": "user", "content": prompt},)) for prompt in prompts)
    return tuple(SamplePrompt(text=prompt) for prompt in prompts)


def first_prompts(
    preparation: SourcePreparation, sources: Sequence[Source], prepared: Sequence[PreparedSource], rows: PreparedRows
) -> tuple[SamplePrompt, ...]:
    """What the first rows of a split ask."""
    first = rows.select(np.arange(min(SAMPLE_PROMPTS, len(rows))))
    columns, parts = first.columns(), first.part_of_rows()
    prompts: list[SamplePrompt] = []
    for part in dict.fromkeys(parts.tolist()):
        own = np.flatnonzero(parts == part).tolist()
        places = {prepared[part].place(int(columns.file[row]), int(columns.line[row])) for row in own}
        preparer = preparation.preparer(sources[part], format_named(prepared[part].format_name))
        prompts += [_as_prompt(preparer.convert(row)) for row in _rows_at(sources[part], places)]
    return tuple(prompts)


def previews(
    preparation: SourcePreparation,
    sources: Sequence[Source],
    prepared: Sequence[PreparedSource],
    numbers: Collection[int],
) -> tuple[RowPreview, ...]:
    """Rows by their number, from 1 through all sources as they are read. A number beyond the last row has none."""
    found: list[RowPreview] = []
    before = 0
    for source, one in zip(sources, prepared, strict=True):
        wanted = {number - before for number in numbers if before < number <= before + one.rows_read}
        if wanted:
            preparer = preparation.preparer(source, format_named(one.format_name))
            for number, row in enumerate(_all_rows(source), start=1):
                if number in wanted:
                    found.append(preparer.preview(before + number, row))
                if number == max(wanted):
                    break
        before += one.rows_read
    return tuple(found)


def _all_rows(source: Source) -> Iterator[RawRow]:
    for chunk in source.chunks():
        yield from chunk.rows()


def _rows_at(source: Source, places: set[RowSource]) -> list[RawRow]:
    found: list[RawRow] = []
    for row in _all_rows(source):
        if row.source in places:
            found.append(row)
        if len(found) == len(places):
            break
    return found


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
