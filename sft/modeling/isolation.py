"""Can this model keep the documents of one row apart? Found out by trying it, on a few tokens.

Models differ in ways that no list keeps up with: windows, caps, convolutions, recurrences, positions of their own. So
two short documents are laid into one row, and it is looked at whether the second depends on the first (its gradient
there must be zero, exactly), and whether each comes out as it does alone.

Shapes: `N` tokens of the row, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from sft.common.errors import one_line
from sft.modeling.document_attention import UnsupportedAttention, isolated_documents

_LENGTHS = (5, 9)
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference from a document alone, as a share of its largest score: far above rounding, far below what wrong
positions or masks do."""


def find_obstacle(
    model: Any, lay_out: Callable[[list[list[int]]], Mapping[str, Any]], attention: str | None, longest: int
) -> str | None:
    """Why the model cannot be given several documents in one row, after "the model"; None if it can.

    Args:
        model: in the place and the types in which it will be trained, under autocast if that is so.
        lay_out: documents' tokens to the inputs of a call, on the model's device, all in one row.
        attention: the attention that is to keep them apart (see `isolated_documents`); None for the model's own.
        longest: tokens of the longest document that will come.
    """
    narrow = _narrow_attention(model.config.get_text_config(), longest)
    if narrow:
        return narrow
    was_training = model.training
    try:
        documents = _documents(model)
        flat = dict(lay_out(documents))
        with isolated_documents(model, attention):
            model.train()  # dropout of attention weights shows only then
            with torch.no_grad():
                model(**(flat | {"max_length_q": longest, "max_length_k": longest}))
            model.eval()
            logits, leak = _scores_and_leak(model, flat)
            if leak:
                return "lets what stands in one document change another"
        for number, document in enumerate(documents):
            ids = flat["input_ids"].new_tensor([document])
            with torch.no_grad():
                alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
            start = sum(_LENGTHS[:number])
            there = logits[start : start + len(document)]
            worst = (there - alone).abs().max() / alone.abs().max().clamp(min=1e-9)
            if not worst <= tolerance(model):
                return f"gives other scores for a document beside others than alone ({worst:.1e} apart)"
    except UnsupportedAttention as obstacle:
        return str(obstacle)
    except Exception as error:  # code that comes with a model may fail in any way; the log tells this one
        return f"does not take several documents in one row: {one_line(error)}"
    finally:
        model.train(was_training)
    return None


def _narrow_attention(config: Any, longest: int) -> str | None:
    """What the configuration says of attention that sees less than a whole document.

    Some models make that by their mask alone, which neither a few tokens nor the attention's arguments show.
    """
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and chunk < longest:
        return f"attends within chunks of {chunk} tokens"
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window and window < longest and (not kinds or any("sliding" in kind for kind in kinds)):
        return f"attends within a sliding window of {window} tokens"
    return None


def _documents(model: Any) -> list[list[int]]:
    """Tokens that differ, the same for every process and run."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    count = sum(_LENGTHS)
    tokens = [(7 * number + 3) % vocab_size for number in range(count)]
    return [tokens[: _LENGTHS[0]], tokens[_LENGTHS[0] :]]


def _scores_and_leak(model: Any, flat: Mapping[str, Any]) -> tuple[torch.Tensor, bool]:
    """The row's scores, float32 `[N, V]`, and whether the second document's depend on the first one's tokens."""
    embedded: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.detach().requires_grad_()
        embedded.append(output)
        return output

    with model.get_input_embeddings().register_forward_hook(keep), torch.enable_grad():
        logits = model(**flat).logits[0].float()
        first = _LENGTHS[0]
        # An uneven weight for each score: a plain sum may cancel out behind a norm.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (gradient,) = torch.autograd.grad((logits[first:] * weights).sum(), embedded[0])
    gradient = gradient.flatten(0, -2)
    leak = bool(gradient[:first].abs().max() > 0) or not bool(gradient[first:].abs().max() > 0)
    return logits.detach(), leak


def tolerance(model: Any) -> float:
    """How far scores may be apart, as a share of the largest, that should be the same: by the type computed in."""
    kind = model.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])
