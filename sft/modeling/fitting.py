"""Fitting model and tokenizer to each other: positions, vocabulary, special tokens, generation defaults."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from sft.common.errors import ModelError
from sft.prompting.rendering import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")


def fit_to_tokenizer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_seq_length: int, *, adapters_only: bool
) -> None:
    """Checks and adjusts what model and tokenizer must agree on: positions, vocabulary, special tokens.

    Raises:
        ModelError: if rows are longer than the model's learned positions, or tokens have no embedding.
    """
    config = model.config.get_text_config()
    positions = num_learned_positions(model)
    if positions is not None and max_seq_length > positions:
        raise ModelError(
            f"max_seq_length is {max_seq_length} but {_class_name(model)} has {positions} learned positions. "
            f"Write max_seq_length: {positions} or less."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if positions is None and limit is not None and max_seq_length > limit:
        logger.info("Note: max_seq_length %d is beyond the %d positions the model was made for.", max_seq_length, limit)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        if adapters_only:
            raise ModelError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {rows}; adapters cannot add them. "
                "Use the model's own tokenizer, or train all weights."
            )
        logger.info("The tokenizer has %d tokens, the model %d: new embeddings are added.", len(tokenizer), rows)
        model.resize_token_embeddings(len(tokenizer))
    for special in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Trainer would do this too, with a warning.
        setattr(model.config, special, getattr(tokenizer, special))


def set_generation_defaults(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, is_chat: bool
) -> list[int]:
    """Makes the saved generation config end an answer where training ended it; returns the ids that do."""
    ends = [tokenizer.eos_token_id]
    if is_chat:
        ends = ChatRenderer(tokenizer).end_token_ids()
    generation = model.generation_config
    generation.eos_token_id = ends  # as a list: Trainer would make it one, in some versions
    generation.pad_token_id = tokenizer.pad_token_id
    generation.bos_token_id = tokenizer.bos_token_id
    if not generation.do_sample and (generation.temperature, generation.top_p, generation.top_k) != (None, None, None):
        # Sampling values without sampling make `save_pretrained` refuse the file.
        generation.temperature = generation.top_p = generation.top_k = None
    return ends


def num_learned_positions(model: Any) -> int | None:
    """How many positions the model has learned embeddings for; None where positions are computed (RoPE, ALiBi).

    Recognized by structure: an embedding beside the token embedding with a row for each position (OPT keeps two rows
    more than positions).
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return None
    tokens = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not tokens and 0 <= module.num_embeddings - limit <= 2:
            return limit
    return None


def _class_name(model: Any) -> str:
    return type(model).__name__
