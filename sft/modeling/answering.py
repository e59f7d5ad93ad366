"""A model's answers to prompts, greedily: the same prompt and weights give the same text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from sft.common.run_records import Answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def _answering_together(model: Any) -> Iterator[dict[str, Any]]:
    """What `generate` needs where FSDP2 spreads the weights: all processes go on as long as one of them does.

    The call is made a forward pass of its own: with adapters it goes past the model's own, which gathers its weights.
    """
    if not isinstance(model, FSDPModule):
        yield {}
        return
    is_made_one = "generate" in vars(model)  # by Trainer
    if not is_made_one:
        register_fsdp_forward_method(model, "generate")
    try:
        yield {"synced_gpus": True}
    finally:
        if not is_made_one:
            del model.generate


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
    """What the model says after `prompt`, without its end token, and whether there was one.

    Args:
        model: any causal language model; its training mode is left as it was.
        tokenizer: its tokenizer.
        prompt: the text to continue: rendered by the chat template, or plain.
        max_new_tokens: cut there if no end token comes.
        eos_token_ids: tokens that end an answer.
        add_special_tokens: True for plain text; a rendered prompt is complete.
        positions: that the model has learned: an answer ends with them, and to a longer prompt it is empty. None for no
            such end.
    """
    inputs = tokenizer(prompt, add_special_tokens=add_special_tokens, return_tensors="pt").to(model.device)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, positions - inputs["input_ids"].shape[1])
        if max_new_tokens < 1:
            return Answer(text="", ended=False)
    was_training = model.training
    model.eval()
    try:
        # Compiled layers would be compiled anew for every length that comes.
        with torch.compiler.set_stance("force_eager"), _answering_together(model) as together:
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=eos_token_ids or None,
                pad_token_id=tokenizer.pad_token_id,
                **together,
            )
    finally:
        model.train(was_training)
    new_tokens = output[0, inputs["input_ids"].shape[1] :].tolist()
    ended = next((i for i, token in enumerate(new_tokens) if token in eos_token_ids), len(new_tokens))
    text = tokenizer.decode(new_tokens[:ended], skip_special_tokens=False)
    return Answer(text=text, ended=ended < len(new_tokens))
