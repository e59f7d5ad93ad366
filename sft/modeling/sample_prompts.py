"""Answers to sample prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.common.data_records import SamplePrompt
from sft.common.run_records import Answer
from sft.modeling.answering import answer_prompt
from sft.modeling.fitting import num_learned_positions
from sft.prompting.rendering import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answer_prompts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[SamplePrompt],
    eos_token_ids: list[int],
    max_new_tokens: int,
) -> list[Answer]:
    """The model's greedy answers to prompts, rendered by the chat template unless they are plain text."""
    answers, positions = [], num_learned_positions(model)
    for prompt in prompts:
        text = prompt.text
        if text is None:
            text = ChatRenderer(tokenizer).render_prompt(prompt.messages, prompt.tools)
        answers.append(
            answer_prompt(
                model,
                tokenizer,
                text,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                add_special_tokens=prompt.text is not None,
                positions=positions,
            )
        )
    return answers
