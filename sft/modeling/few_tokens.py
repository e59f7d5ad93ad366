"""Ordinary tokens for trials, and a call on them: no padding, image or other special token of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Any

import torch

from sft.modeling.document_attention import attention_of, isolated_documents


def few_tokens(model: Any, number: int) -> list[int]:
    """Different tokens, the same for every process and run; repeated where the vocabulary has fewer."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    special = set(_special_ids(model.config.to_dict()))
    ordinary = [token for token in range(min(vocab_size, 100 + 8 * number)) if token not in special] or [0]
    return list(islice((ordinary[(7 * index + 3) % len(ordinary)] for index in count()), number))


def call_on(model: Any, ids: torch.Tensor, **inputs: torch.Tensor) -> Any:
    """The model's output for complete rows of tokens `[B, N]`, without a cache of keys and values.

    Attention kernels of packages are for GPUs; a model that is still in main memory is called with its eager attention.
    """
    options = without_cache(model)
    needs_gpu = attention_of(model) not in ("eager", "sdpa") and model.device.type == "cpu"
    with isolated_documents(model, "eager" if needs_gpu else None):
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, **options)


def base_of(model: Any) -> Any:
    """The model without its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_cache(model: Any) -> dict[str, bool]:
    """The argument of a call that keeps the model from caching keys, values and states; none where it takes none."""
    base = base_of(model)
    outer = inspect.signature(base.forward).parameters
    inner = inspect.signature(getattr(base, "base_model", base).forward).parameters
    passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in outer.values())
    return {"use_cache": False} if "use_cache" in outer or (passes_on and "use_cache" in inner) else {}


def _special_ids(settings: Mapping[str, Any]) -> Iterator[int]:
    """The ids under keys such as `pad_token_id` and `image_token_index`, those of sections included."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif "token_i" in str(key):
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))
