"""The rows of evaluation sets whose answers are scored: the same ones in every run with the same seed."""

from __future__ import annotations

import logging

import numpy as np

from sft.common.errors import ConfigError
from sft.common.shown_rows import ScoredPrompt
from sft.common.text import counted
from sft.data.examples import as_prompt, rows_by_number
from sft.data.preparation import SourcePreparation
from sft.data.prepared import Split

logger = logging.getLogger("sft.data")


def select_scored_rows(
    preparation: SourcePreparation, split: Split, count: int, seed: int, name: str
) -> tuple[ScoredPrompt, ...]:
    """Prompts of up to `count` rows, in reading order.

    Args:
        preparation: Converts rows.
        split: The rows of the set.
        count: Rows to take.
        seed: Of the choice.
        name: Of the set, for messages.

    Raises:
        ConfigError: If the rows have no answers: texts and token ids.
    """
    for prepared in split.prepared:
        if not prepared.record_format.is_chat:
            raise ConfigError(
                f"answer_scores: the {prepared.record_format.name} rows of {prepared.files[0]} have no answers to "
                "score. Evaluate other data, or remove the key."
            )
    whole = np.flatnonzero(split.rows.columns().piece <= 1)
    taken = np.sort(np.random.default_rng(seed).choice(whole, min(count, len(whole)), replace=False))
    chosen = split.rows.select(taken)
    columns, source_of_row = chosen.columns(), chosen.source_indices()
    found: list[ScoredPrompt] = []
    num_calls = 0
    for number in dict.fromkeys(source_of_row.tolist()):
        preparer = preparation.preparer(split.sources[number], split.prepared[number].record_format)
        own = columns.take(np.flatnonzero(source_of_row == number))
        wanted = set(zip(own.number.tolist(), own.part.tolist(), strict=True))
        for row, raw in rows_by_number(split.sources[number], {row for row, _ in wanted}):
            for made in preparer.made(raw):
                if (row, made.source.part) not in wanted:
                    continue
                prompt = as_prompt(preparer.convert(made), preparation.tokenizer)
                if not (prompt.reference or "").strip():
                    num_calls += 1  # an answer that only calls tools
                    continue
                found.append(ScoredPrompt(prompt=prompt, place=str(made.source), row=dict(made.record or {})))
    if num_calls:
        logger.info("answer_scores: %s of %s call tools and are not scored.", counted(num_calls, "answer"), name)
    return tuple(found)
