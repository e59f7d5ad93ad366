"""Does the model keep the documents of a packed row isolated? Tested on a few tokens.

Models differ in more ways than a list could cover: windows, soft caps, convolutions, recurrences, special positions. So
two short documents are packed in one row, and two things are checked: the second must not depend on the first (its
gradient there must be exactly zero), and each must have the same logits as alone. Where the model attends within a
window or chunk that a document can exceed, a third one that does must have the same logits as alone too.

Shapes: `N` tokens of the row, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sft.common.device_errors import reraise_device_error
from sft.common.errors import one_line
from sft.modeling.architecture import values_of_layers
from sft.modeling.document_attention import UnsupportedAttention, isolated_documents
from sft.modeling.varlen_kernel import KernelObstacle

_LENGTHS = (5, 9)
_COMPARED = 16
"""Logits of a long document that are compared, at its end: all of them would take gigabytes with a large vocabulary."""
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
    was_training = model.training
    try:
        documents = _documents(model)
        flat = dict(lay_out(documents))
        with isolated_documents(model, attention):
            model.train()  # attention dropout is only active in training mode
            with torch.no_grad():
                model(**flat)
            model.eval()
            logits, leak = _logits_and_leak(model, flat)
            if leak:
                return "lets one document influence another"
        for number, document in enumerate(documents):
            start = sum(_LENGTHS[:number])
            worst = _difference(logits[start : start + len(document)], _logits_alone(model, document))
            if not worst <= tolerance(model):
                return f"computes different logits for a packed document than for the same one alone (by {worst:.1e})"
        for limit, what in _limits_of_attention(model.config.get_text_config(), max_seq_length):
            worst = _difference_beyond(model, lay_out, attention, limit)
            if not worst <= tolerance(model):
                return f"attends within {what} of {limit} tokens in a way that packed rows cannot (off by {worst:.1e})"
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


def _limits_of_attention(config: Any, max_seq_length: int) -> Iterator[tuple[int, str]]:
    """The configured windows and chunks that the longest document exceeds, in tokens, each with its name."""
    for key, what in (("sliding_window", "a sliding window"), ("attention_chunk_size", "chunks")):
        for limit in sorted(set(values_of_layers(config, key))):
            if 0 < limit < max_seq_length:
                yield limit, what


def _difference_beyond(
    model: Any, lay_out: Callable[[list[list[int]]], Mapping[str, Any]], attention: str | None, limit: int
) -> float:
    """How much the last logits of a document longer than `limit` differ, packed after another one and alone.

    Without gradients: that no document reaches another has been seen on short ones.
    """
    first, _ = _documents(model)
    long = _tokens(model, limit + _COMPARED)
    with torch.no_grad(), _last_positions_only(model):
        with isolated_documents(model, attention):
            packed = model(**lay_out([first, long])).logits[0, -_COMPARED:].float()
        return _difference(packed, _logits_alone(model, long)[-_COMPARED:])


@contextmanager
def _last_positions_only(model: Any) -> Iterator[None]:
    """Context in which the output layer, where a model has one, computes the last positions of a row alone."""
    layer = model.get_output_embeddings()
    if layer is None:
        yield
        return
    with layer.register_forward_pre_hook(lambda _, args: (args[0][:, -_COMPARED:], *args[1:])):
        yield


def _logits_alone(model: Any, document: list[int]) -> torch.Tensor:
    """The logits of a document in a row of its own, float32 `[L, V]`."""
    ids = torch.tensor([document], device=model.device)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


def _documents(model: Any) -> list[list[int]]:
    """Two documents of different tokens, the same for every process and run."""
    tokens = _tokens(model, sum(_LENGTHS))
    return [tokens[: _LENGTHS[0]], tokens[_LENGTHS[0] :]]


def _tokens(model: Any, count: int) -> list[int]:
    vocab_size = model.get_input_embeddings().weight.shape[0]
    return [(7 * number + 3) % vocab_size for number in range(count)]


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
