"""Cross-entropy over supervised tokens, as sums: means are computed once, over the global batch.

The vocabulary is the largest dimension of a model, so the logits are the largest tensor of a step. Here they are
computed for supervised positions alone, in chunks, and each chunk's gradient is computed at once: what is kept is as
wide as the hidden states. (The idea is that of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024, and of
Wijmans et al., 2024, Cut Your Losses; implemented here in plain torch, for any device.)

Shapes: `S` supervised positions of the batch, `V` vocabulary, `h` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

CountHits = Callable[[torch.Tensor], None]
AddLoss = Callable[[torch.Tensor], None]
_LARGE_GPU_BYTES = 60 * 2**30
"""Of GPUs with 80 GB and more: there 1 GiB of logits, and half of it again in 16 bits, are a small share."""
_TILE_ROWS = 128
HALF_PRECISION_SCALE = 1024.0
"""Scale of stored float16 gradients: most probabilities underflow in float16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """Targets that count unequally."""

    weights: torch.Tensor
    """float32 `[S]`: factor of each target's cross-entropy and gradient."""
    is_answer: torch.Tensor | None = None
    """bool `[S]`: whether a target is a supervised token, of which hits and the plain loss are counted. None: all."""
    add_plain_loss: AddLoss | None = None
    """Called for each chunk with the sum of the supervised tokens' cross-entropies, each counted once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Targets:
    """The tokens to predict, and what is computed of them besides gradients."""

    ids: torch.Tensor
    label_smoothing: float
    count_hits: CountHits | None
    weighting: Weighting | None

    def chunk(self, start: int, size: int) -> _Targets:
        """Those from `start` on."""
        part, own = slice(start, start + size), self.weighting
        if own is not None:
            is_answer = None if own.is_answer is None else own.is_answer[part]
            own = replace(own, weights=own.weights[part], is_answer=is_answer)
        return replace(self, ids=self.ids[part], weighting=own)

    def half_precision_scale(self) -> float | torch.Tensor:
        """Scale of stored float16 gradients, of which the largest is as large as the largest weight."""
        if self.weighting is None or not len(self.ids):
            return HALF_PRECISION_SCALE
        return HALF_PRECISION_SCALE / self.weighting.weights.amax()


def linear_cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count_hits: CountHits | None = None,
    weighting: Weighting | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropies of an output layer's logits, in nats; float32 scalar. Never holds all logits.

    Under autocast, logits are computed in its type, as the layer itself would; the softmax is float32.

    Args:
        hidden: `[S, h]`, the output layer's input.
        weight, bias: parameters of the output layer, `[V, h]` and `[V]`.
        targets: int64 `[S]`.
        label_smoothing: share of the target distributed over the vocabulary (Szegedy et al., 2016, section 7).
        count_hits: called for each chunk with the number of positions whose target has the highest logit (or shares
            it, as happens in 16 bits).
        weighting: of targets that count unequally; None if each counts once.
        chunk_rows: positions per chunk; None chooses by the vocabulary and the device.
    """
    rows = chunk_rows or _chunk_rows(weight.shape[0], hidden.device)
    given = _Targets(ids=targets, label_smoothing=label_smoothing, count_hits=count_hits, weighting=weighting)
    return _LinearCrossEntropy.apply(hidden, weight, bias, given, rows)


def cross_entropy_sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count_hits: CountHits | None = None,
    weighting: Weighting | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropies of given logits, in nats; float32 scalar. Converts to float32 in chunks.

    For models that cap or scale the output layer's product.

    Args:
        logits: `[S, V]`, any float type.
        targets: int64 `[S]`.
        label_smoothing, count_hits, weighting: as for `linear_cross_entropy_sum`.
    """
    rows = _chunk_rows(logits.shape[1], logits.device)
    given = _Targets(ids=targets, label_smoothing=label_smoothing, count_hits=count_hits, weighting=weighting)
    return _CrossEntropy.apply(logits, given, rows)


def losses_and_hits(logits: Iterator[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For evaluation: each target's cross-entropy, float32 `[S]`, and whether it is the most likely token, bool `[S]`.

    Args:
        logits: chunks of logits, `[S', V]` each, in the order of the targets.
        targets: int64 `[S]`.
    """
    losses, hits, start = [], [], 0
    for chunk in logits:
        chunk_targets = targets[start : start + len(chunk)]
        losses.append(functional.cross_entropy(chunk.float(), chunk_targets, reduction="none"))
        hits.append(chunk.argmax(dim=-1) == chunk_targets)
        start += len(chunk)
    if not losses:
        return torch.zeros(0, device=targets.device), torch.zeros(0, dtype=torch.bool, device=targets.device)
    return torch.cat(losses), torch.cat(hits)


def linear_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """An output layer's logits, `[S, V]` in chunks."""
    for chunk in hidden.split(_chunk_rows(weight.shape[0], hidden.device)):
        yield functional.linear(chunk, weight, bias)


def chunk_bytes(device_type: str, memory_bytes: int | None) -> int:
    """Bytes of a chunk of float32 logits: enough for efficient matrix products.

    Each chunk reads and writes the gradient of the output layer's weights once, so a GPU with room gets larger ones.

    Args:
        device_type: `cpu` or `cuda`.
        memory_bytes: of a GPU; None if it is not known.
    """
    if device_type != "cuda":
        return 2**27
    return 2**30 if (memory_bytes or 0) >= _LARGE_GPU_BYTES else 2**28


def chunk_bytes_on(device: torch.device) -> int:
    """The same for a device of this machine."""
    is_gpu = device.type == "cuda"
    return chunk_bytes(device.type, torch.cuda.get_device_properties(device).total_memory if is_gpu else None)


def _chunk_rows(vocab_size: int, device: torch.device) -> int:
    rows = chunk_bytes_on(device) // (4 * vocab_size)
    # Tiles of matrix products on a GPU have 128 rows.
    return max(rows, 16) if device.type != "cuda" else max(rows // _TILE_ROWS, 1) * _TILE_ROWS


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes logits, loss and gradients chunk by chunk; the backward pass only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: _Targets,
        chunk_rows: int,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        compute_type = _compute_type(hidden)
        is_half = compute_type is torch.float16
        ctx.gradient_scale = targets.half_precision_scale() if is_half else 1.0
        ctx.types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden, dtype=compute_type) if needs_hidden else None
        # In float32 the first product is written, not added: zeros as large as the layer take time too.
        is_empty = compute_type is torch.float32 and len(hidden) > 0
        create = torch.empty_like if is_empty else torch.zeros_like
        of_weight = create(weight, dtype=torch.float32) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(compute_type)
            offset = None if bias is None else bias.to(compute_type)
            for start in range(0, len(hidden), chunk_rows):
                logits = gradient = None  # frees those of the last chunk before new ones are computed
                chunk = hidden[start : start + chunk_rows].to(compute_type)
                logits = functional.linear(chunk, matrix, offset).float()
                total += _loss_and_gradient_(logits, targets.chunk(start, chunk_rows))
                gradient = logits.mul_(ctx.gradient_scale) if is_half else logits
                gradient = gradient.to(compute_type)
                if of_hidden is not None:
                    torch.mm(gradient, matrix, out=of_hidden[start : start + chunk_rows])
                if of_weight is not None:
                    _add_product_(of_weight, gradient, chunk, is_empty=is_empty and start == 0)
                if of_bias is not None:
                    of_bias += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient = gradient / ctx.gradient_scale
        scaled = [_scaled(kept, gradient, kind) for kept, kind in zip(ctx.saved_tensors, ctx.types, strict=True)]
        return (*scaled, None, None)


class _CrossEntropy(torch.autograd.Function):
    """The same for given logits; their gradient is kept in their own type."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: _Targets, chunk_rows: int) -> torch.Tensor:
        ctx.gradient_scale = targets.half_precision_scale() if logits.dtype is torch.float16 else 1.0
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        kept = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            of_chunk = logits[chunk].to(torch.float32, copy=True)
            total += _loss_and_gradient_(of_chunk, targets.chunk(start, chunk_rows))
            if kept is not None:
                kept[chunk] = of_chunk.mul_(ctx.gradient_scale)
        ctx.save_for_backward(kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return kept.mul_(gradient / ctx.gradient_scale), None, None


def _add_product_(total: torch.Tensor, gradient: torch.Tensor, chunk: torch.Tensor, *, is_empty: bool) -> None:
    """Adds `gradient.t() @ chunk` to `total`, float32 `[V, h]`, in place.

    `is_empty`: `total` has no values yet; for float32 chunks only.
    """
    if chunk.dtype is not torch.float32 and _sums_in_float32(chunk.device):
        # The product is never rounded to 16 bits, nor stored.
        torch.addmm(total, gradient.t(), chunk, out_dtype=torch.float32, out=total)
    elif chunk.dtype is torch.bfloat16:
        total += gradient.t() @ chunk
    else:
        # A float16 sum over many rows would overflow, whatever the loss scale.
        total.addmm_(gradient.float().t(), chunk.float(), beta=0 if is_empty else 1)


def _sums_in_float32(device: torch.device) -> bool:
    """Whether `addmm` of 16-bit matrices adds to a float32 one, as in torch 2.9 and later on NVIDIA's GPUs."""
    return device.type == "cuda" and torch.version.hip is None and hasattr(torch.ops.aten.addmm, "dtype_out")


def _scaled(kept: torch.Tensor | None, factor: torch.Tensor, kind: torch.dtype) -> torch.Tensor | None:
    """A stored gradient times a factor, in the type of its parameter; None where none was stored."""
    if kept is None:
        return None
    if kept.dtype is torch.float32:
        return kept.mul_(factor).to(kind)  # in place: it is used once, and can be as large as the output layer
    return (kept.float() * factor).to(kind)


def _compute_type(hidden: torch.Tensor) -> torch.dtype:
    """The type that a linear layer computes in: autocast's, or without autocast that of its input."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _loss_and_gradient_(logits: torch.Tensor, targets: _Targets) -> torch.Tensor:
    """The chunk's loss sum; `logits` (float32 logits `[S', V]`) is overwritten by its gradient.

    With targets `q = (1 - e) * onehot + e / V`: loss `= -sum(q * log p)`, gradient `= p - q`. No other tensor of the
    size of the logits is allocated (`logsumexp` would). Both are multiplied by the targets' weights.
    """
    vocab_size, label_smoothing, weighting = logits.shape[1], targets.label_smoothing, targets.weighting
    column = targets.ids[:, None]
    logits.sub_(logits.amax(dim=1, keepdim=True))  # so that no exponential overflows
    of_targets = logits.gather(1, column)
    if targets.count_hits is not None:
        is_answer = None if weighting is None else weighting.is_answer
        is_hit = of_targets == 0
        targets.count_hits((is_hit if is_answer is None else is_hit & is_answer[:, None]).sum())
    mean_logit = logits.mean(dim=1, keepdim=True) if label_smoothing else None
    normalizer = logits.exp_().sum(dim=1, keepdim=True)
    log_normalizer = normalizer.log()
    loss = _sum_of(log_normalizer - of_targets, weighting)
    if mean_logit is not None:
        uniform = _sum_of(log_normalizer - mean_logit, weighting)
        loss = [(1 - label_smoothing) * own + label_smoothing * even for own, even in zip(loss, uniform, strict=True)]
    logits.div_(normalizer)
    logits.scatter_add_(1, column, logits.new_full((1, 1), label_smoothing - 1).expand(len(targets.ids), 1))
    if label_smoothing:
        logits.sub_(label_smoothing / vocab_size)
    if weighting is not None:
        logits.mul_(weighting.weights[:, None])
        if weighting.add_plain_loss is not None:
            weighting.add_plain_loss(loss[1])
    return loss[0]


def _sum_of(losses: torch.Tensor, weighting: Weighting | None) -> list[torch.Tensor]:
    """The sum of losses `[S', 1]`; of weighted ones two: by their weights, and of the supervised tokens alone."""
    if weighting is None:
        return [losses.sum()]
    plain = losses if weighting.is_answer is None else losses * weighting.is_answer[:, None]
    return [(losses * weighting.weights[:, None]).sum(), plain.sum()]
