"""Adjusting model and tokenizer to each other: positions, vocabulary, special tokens, generation defaults."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from sft.common.errors import ModelError
from sft.modeling.architecture import num_positions
from sft.modeling.causality import check_is_causal
from sft.modeling.generation_settings import check_can_be_saved
from sft.modeling.mapped_weights import widen_weights
from sft.prompting.rendering import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("sft.model")
SPECIAL_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def fit_to_tokenizer(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_seq_length: int, *, adapters_only: bool
) -> None:
    """Check and adjust what model and tokenizer must agree on: positions, vocabulary, special tokens.

    Args:
        model: adjusted in place: new embeddings, special token ids.
        tokenizer: the tokenizer of the data.
        max_seq_length: tokens of the longest possible row.
        adapters_only: embeddings are frozen, so none can be added.

    Raises:
        ModelError: if rows are longer than the model's learned positions, or tokens have no embedding.
    """
    positions = num_learned_positions(model)
    if positions is not None and max_seq_length > positions:
        check_is_causal(model)  # of two problems, the one that no setting mends comes first
        raise ModelError(
            f"max_seq_length is {max_seq_length} but {_class_name(model)} has {positions} learned positions. "
            f"Write max_seq_length: {positions} or less."
        )
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if len(tokenizer) > rows:
        if adapters_only:
            raise ModelError(
                f"The tokenizer has {len(tokenizer)} tokens, the model {rows}; adapters cannot add them. "
                "Use the model's own tokenizer, or train all weights."
            )
        logger.info("The tokenizer has %d tokens, the model %d: adding new embeddings.", len(tokenizer), rows)
        wanted: Any = model.config.dtype or model.dtype
        widen_weights(model, wanted)  # new ones are computed from those that are there
        model.resize_token_embeddings(len(tokenizer))
    for name in SPECIAL_TOKEN_IDS:
        ours, theirs = getattr(tokenizer, name), getattr(model.config, name, None)
        # A token that the tokenizer does not define may still mean something to the model and to other programs.
        if ours is not None and ours != theirs and not (isinstance(theirs, list) and ours in theirs):
            setattr(model.config, name, ours)


def set_generation_defaults(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, is_chat: bool
) -> list[int]:
    """Set the end tokens of the generation config to those that were trained; returns their ids.

    Raises:
        ModelError: if its settings cannot be saved again with the trained model.
    """
    ends = [tokenizer.eos_token_id]
    if is_chat:
        ends = ChatRenderer(tokenizer).end_token_ids()
    generation = model.generation_config
    generation.eos_token_id = ends  # a list, as some versions of Trainer make it one
    generation.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        generation.bos_token_id = tokenizer.bos_token_id
    if not generation.do_sample and (generation.temperature, generation.top_p, generation.top_k) != (None, None, None):
        # `save_pretrained` rejects sampling parameters without sampling.
        generation.temperature = generation.top_p = generation.top_k = None
    check_can_be_saved(model)
    return ends


def num_learned_positions(model: Any) -> int | None:
    """Number of learned position embeddings; None where positions are computed (RoPE, ALiBi).

    Recognized by structure: an embedding beside the token embedding with one row per position (OPT has two rows more
    than positions).
    """
    limit = num_positions(model.config)
    if limit is None:
        return None
    tokens = model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not tokens and 0 <= module.num_embeddings - limit <= 2:
            return limit
    return None


def _class_name(model: Any) -> str:
    return type(model).__name__
