"""A model's greedy answers to prompts: the same prompt and weights give the same text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from sft.common.run_records import Answer
from sft.common.shown_rows import SamplePrompt
from sft.modeling.fitting import num_learned_positions
from sft.modeling.generation_settings import generation_errors_named
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
    """Answer prompts greedily, each rendered by the chat template unless it is plain text."""
    answers, positions = [], num_learned_positions(model)
    for prompt in prompts:
        text = prompt.text
        if text is None:
            text = ChatRenderer(tokenizer).render_prompt(prompt.messages, prompt.tools, prompt.template_kwargs)
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


@torch.no_grad()
def answer_prompt(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    *,
    max_new_tokens: int,
    eos_token_ids: list[int],
    add_special_tokens: bool,
    positions: int | None = None,
) -> Answer:
    """Continue `prompt` greedily; the text excludes the end token.

    Args:
        model: any causal language model; its training mode is restored afterwards.
        tokenizer: the model's tokenizer.
        prompt: the text to continue, rendered by the chat template or plain.
        max_new_tokens: the answer is cut at this many tokens if no end token comes.
        eos_token_ids: tokens that end an answer.
        add_special_tokens: True for plain text; a rendered prompt already has its special tokens.
        positions: number of learned positions of the model, a limit for prompt and answer together. A prompt that
            reaches it gets an empty answer. None for no limit.
    """
    inputs = tokenizer(prompt, add_special_tokens=add_special_tokens, return_tensors="pt").to(model.device)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - inputs["input_ids"].shape[1])
        if max_new_tokens < 1:
            return Answer(text="", ended=False)
    ids = inputs["input_ids"]
    output = generated(
        model, tokenizer, ids, torch.ones_like(ids), max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids
    )
    new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    ended = next((i for i, token in enumerate(new_tokens) if token in eos_token_ids), len(new_tokens))
    text = tokenizer.decode(new_tokens[:ended], skip_special_tokens=False)
    return Answer(text=cast(str, text), ended=ended < len(new_tokens))


def generated(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
) -> torch.Tensor:
    """The most likely continuation of each row, int64 `[B, T + new]`; the model's training mode is restored.

    Args:
        model: any causal language model.
        tokenizer: the model's tokenizer.
        input_ids, attention_mask: int64 `[B, T]`, padded on the left.
        max_new_tokens: of each row.
        eos_token_ids: tokens that end a row.
    """
    was_training = model.training
    model.eval()
    try:
        # Compiled layers would be recompiled for every new length.
        eager, named = torch.compiler.set_stance("force_eager"), generation_errors_named(model)
        with eager, named, _generating_in_step(model) as options:
            output: torch.Tensor = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,  # the model's own settings may ask for many
                num_return_sequences=1,
                use_cache=True,
                return_dict_in_generate=False,
                tokenizer=tokenizer,  # for `stop_strings` of the model
                eos_token_id=list(eos_token_ids) or None,
                pad_token_id=tokenizer.pad_token_id,
                **options,
            )
    finally:
        model.train(was_training)
    return output


@contextmanager
def _generating_in_step(model: Any) -> Iterator[dict[str, Any]]:
    """Options for `generate`; with FSDP2, all processes keep generating until the last one has finished.

    With FSDP2, `generate` is registered as a forward method: on a model with adapters it bypasses the wrapped forward
    pass, which is what gathers the weights.
    """
    is_sharded = isinstance(model, FSDPModule)
    if not is_sharded:
        yield {}
        return
    is_registered = "generate" in vars(model)  # by Trainer
    if not is_registered:
        register_fsdp_forward_method(model, "generate")
    try:
        yield {"synced_gpus": True}
    finally:
        if not is_registered:
            del model.generate
