"""Single rows for a person to look at: read from their source again, where they stand."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from sft.common.data_records import Conversation, RawRow, RowPreview, SamplePrompt
from sft.data.counts import PreparedSource
from sft.data.preparation import SourcePreparation, format_named
from sft.data.sources.load import Source
from sft.data.store import PreparedRows

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
        preparer = preparation.preparer(sources[part], format_named(prepared[part].format_name))
        rows_of_part = _rows_at(sources[part], set(columns.number[parts == part].tolist()))
        prompts += [_as_prompt(preparer.convert(row)) for _, row in rows_of_part]
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
            found += [preparer.preview(before + number, row) for number, row in _rows_at(source, wanted)]
        before += one.rows_read
    return tuple(found)


def _rows_at(source: Source, numbers: Collection[int]) -> Iterator[tuple[int, RawRow]]:
    """Rows of a source by number, from 1, each with its number, in order; no more is parsed than is asked for."""
    first = 1
    for chunk in source.chunks():
        own = sorted(number for number in numbers if first <= number < first + chunk.num_rows)
        if own:
            yield from zip(own, chunk.rows([number - first for number in own]), strict=True)
        first += chunk.num_rows
        if first > max(numbers):
            return


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
