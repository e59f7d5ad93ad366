"""Single rows to show: sample prompts and previews, read again from their source."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sft.common.data_records import Conversation, RawRow, RowPreview
from sft.common.given_tokens import GivenTokens
from sft.common.shown_rows import SamplePrompt
from sft.data.preparation import SourcePreparation
from sft.data.prepared import Split
from sft.data.sources.load import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_PROMPTS = 3
"""Prompts taken from the data if none are given."""


def select_sample_prompts(
    given: Sequence[str] | None, preparation: SourcePreparation, train: Split, validation: Split | None
) -> tuple[SamplePrompt, ...]:
    """The prompts to answer before and after training.

    Args:
        given: Prompts of the configuration. They become user messages, or the beginning of a text if the first source
            holds plain text. None takes the prompts of the first validation rows, or of the first training rows.
        preparation: Converts rows.
        train: The training rows.
        validation: The validation rows, if there are any.
    """
    if given is None:
        return _first_prompts(preparation, validation or train)
    if train.prepared[0].record_format.is_chat:
        chats = train.sources[0].chats
        asked = [chats.applied(Conversation(messages=({"role": "user", "content": prompt},)), {}) for prompt in given]
        return tuple(SamplePrompt(messages=one.messages, template_kwargs=one.template_kwargs) for one in asked)
    return tuple(SamplePrompt(text=prompt) for prompt in given)


def preview_rows(preparation: SourcePreparation, train: Split, numbers: Collection[int]) -> tuple[RowPreview, ...]:
    """Previews of training rows by number, from 1 through all sources as read. Numbers beyond the last are ignored."""
    found: list[RowPreview] = []
    before = 0
    for source, prepared in zip(train.sources, train.prepared, strict=True):
        wanted = {number - before for number in numbers if before < number <= before + prepared.rows_read}
        if wanted:
            preparer = preparation.preparer(source, prepared.record_format)
            found += [
                preparer.preview(before + number, made)
                for number, row in rows_by_number(source, wanted)
                for made in preparer.made(row)
            ]
        before += prepared.rows_read
    return tuple(found)


def _first_prompts(preparation: SourcePreparation, split: Split) -> tuple[SamplePrompt, ...]:
    whole = np.flatnonzero(split.rows.columns().piece <= 1)
    first = split.rows.select(whole[:SAMPLE_PROMPTS])
    columns, source_of_row = first.columns(), first.source_indices()
    prompts: list[SamplePrompt] = []
    for number in dict.fromkeys(source_of_row.tolist()):
        source = split.sources[number]
        preparer = preparation.preparer(source, split.prepared[number].record_format)
        own = columns.take(np.flatnonzero(source_of_row == number))
        wanted = set(zip(own.number.tolist(), own.part.tolist(), strict=True))
        rows = rows_by_number(source, {row for row, _ in wanted})
        made = ((row, each) for row, raw in rows for each in preparer.made(raw))
        prompts += [
            as_prompt(preparer.convert(each), preparation.tokenizer)
            for row, each in made
            if (row, each.source.part) in wanted
        ]
    return tuple(prompts)


def rows_by_number(source: Source, numbers: Collection[int]) -> Iterator[tuple[int, RawRow]]:
    """Rows of a source by number, from 1, each with its number and in order. Parses only these rows."""
    first = 1
    for chunk in source.chunks():
        own = sorted(number for number in numbers if first <= number < first + chunk.num_rows)
        if own:
            yield from zip(own, chunk.rows([number - first for number in own]), strict=True)
        first += chunk.num_rows
        if first > max(numbers):
            return


def as_prompt(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> SamplePrompt:
    """A conversation up to its last answer, with that answer as reference; the first words of plain text."""
    if conversation.tokens is not None:
        return _decoded_prompt(conversation.tokens, tokenizer)
    if conversation.text is not None:
        words = conversation.text.split(maxsplit=16)  # what follows is one more
        return SamplePrompt(text=" ".join(words[: max(1, min(8, len(words) // 2))]))
    last = max(index for index, message in enumerate(conversation.messages) if message["role"] == "assistant")
    others = conversation.other_keys
    return SamplePrompt(
        messages=tuple({**message, **others.get(i, {})} for i, message in enumerate(conversation.messages[:last])),
        tools=conversation.tools,
        template_kwargs=conversation.template_kwargs,
        reference=conversation.messages[last]["content"],
    )


def _decoded_prompt(tokens: GivenTokens, tokenizer: "PreTrainedTokenizerBase") -> SamplePrompt:
    """The text of the tokens before the first that is trained, with those after it as reference; or of some tokens."""
    input_ids, trained = tokens.input_ids, tokens.trained
    begin = int(np.argmax(trained))
    end = len(trained) if trained[begin:].all() else begin + int(np.argmin(trained[begin:]))
    has_prompt = begin > (1 if input_ids[0] == tokenizer.bos_token_id else 0)
    prompt = input_ids[:begin] if has_prompt else input_ids[: max(1, min(16, len(input_ids) // 2))]
    # The tokenizer adds its begin-of-text token again.
    prompt = prompt[1:] if len(prompt) > 1 and prompt[0] == tokenizer.bos_token_id else prompt
    return SamplePrompt(
        text=str(tokenizer.decode(prompt.tolist())),
        reference=str(tokenizer.decode(input_ids[begin:end].tolist(), skip_special_tokens=True))
        if has_prompt
        else None,
    )
