"""Does the model keep the documents of a packed row isolated? Tested on a few tokens.

Models differ in more ways than a list could cover: windows, soft caps, convolutions, recurrences, special positions. So
two short documents are packed in one row, and two things are checked: the second must not depend on the first (its
gradient there must be exactly zero), and each must have the same logits as alone.

Shapes: `N` tokens of the row, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.modeling.document_attention import UnsupportedAttention, isolated_documents
from sft.modeling.varlen_kernel import KernelObstacle

_LENGTHS = (5, 9)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from the same document alone, as a share of the largest logit: far above rounding errors, far
below the effect of wrong positions or masks."""


def find_obstacle(
    model: Any, lay_out: Callable[[list[list[int]]], Mapping[str, Any]], attention: str | None, max_seq_length: int
) -> str | None:
    """Why documents cannot be packed in one row for this model, after "the model"; None if they can.

    Args:
        model: on the device and in the types of training, under autocast if training uses it.
        lay_out: makes the inputs of a call from documents' tokens: on the model's device, all in one row.
        attention: the attention that isolates documents (see `isolated_documents`); None for the model's own.
        max_seq_length: tokens of the longest possible document.

    Raises:
        KernelObstacle: if only torch's kernel for packed rows cannot be used.
    """
    limited = _limited_attention(model.config.get_text_config(), max_seq_length)
    if limited:
        return limited
    was_training = model.training
    try:
        documents = _documents(model)
        flat = dict(lay_out(documents))
        with isolated_documents(model, attention):
            model.train()  # attention dropout is only active in training mode
            with torch.no_grad():
                model(**(flat | {"max_length_q": max_seq_length, "max_length_k": max_seq_length}))
            model.eval()
            logits, leak = _logits_and_leak(model, flat)
            if leak:
                return "lets one document influence another"
        for number, document in enumerate(documents):
            ids = flat["input_ids"].new_tensor([document])
            with torch.no_grad():
                alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            start = sum(_LENGTHS[:number])
            packed = logits[start : start + len(document)]
            worst = (packed - alone).abs().max() / alone.abs().max().clamp(min=1e-9)
            if not worst <= tolerance(model):
                return f"computes different logits for a packed document than for the same one alone (by {worst:.1e})"
    except UnsupportedAttention as obstacle:
        return str(obstacle)
    except KernelObstacle:
        raise
    except Exception as error:  # a model's own code may fail in any way; the reason is logged
        reraise_device_error(error)
        return f"fails with several documents in one row: {one_line(error)}"
    finally:
        model.train(was_training)
    return None


def _limited_attention(config: Any, max_seq_length: int) -> str | None:
    """The configured limit of attention to less than a complete document, if there is one.

    Some models implement it in their mask alone, which neither a few tokens nor the attention's arguments reveal.
    """
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk < max_seq_length:
        return f"attends within chunks of {chunk} tokens"
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and window < max_seq_length and (not kinds or any("sliding" in kind for kind in kinds)):
        return f"attends within a sliding window of {window} tokens"
    return None


def _documents(model: Any) -> list[list[int]]:
    """Two documents of different tokens, the same for every process and run."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    count = sum(_LENGTHS)
    tokens = [(7 * number + 3) % vocab_size for number in range(count)]
    return [tokens[: _LENGTHS[0]], tokens[_LENGTHS[0] :]]


def _logits_and_leak(model: Any, flat: Mapping[str, Any]) -> tuple[torch.Tensor, bool]:
    """The row's logits, float32 `[N, V]`, and whether those of the second document depend on the first one's tokens."""
    embedded: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        embedded.append(output)
        return output

    with model.get_input_embeddings().register_forward_hook(keep), torch.enable_grad():
        logits = model(**flat).logits[0].float()
        first = _LENGTHS[0]
        # A different weight for each logit: a plain sum may cancel out after a norm.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (gradient,) = torch.autograd.grad((logits[first:] * weights).sum(), embedded[0])
    gradient = gradient.flatten(0, -2)
    leak = bool(gradient[:first].abs().max() > 0) or not bool(gradient[first:].abs().max() > 0)
    return logits.detach(), leak


def tolerance(model: Any) -> float:
    """Largest allowed difference of logits, as a share of the largest one, in the type that the model computes in."""
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])
