"""Cross-entropy over supervised tokens, as sums: means are made once, over the whole global batch.

The vocabulary is the widest thing in a model, so its scores are the largest tensor of a step. Here they are made for
supervised positions alone, a few at a time, and their gradient is taken while they are there: what is kept is as wide
as the hidden states. (The idea is that of Liger Kernel's fused linear cross-entropy, Hsu et al., 2024, and of Wijmans
et al., 2024, Cut Your Losses; written here in plain torch, for any device.)

Shapes: `S` supervised positions of the batch, `V` vocabulary, `h` hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from sft.common.run_records import EvaluationResult

CountHits = Callable[[torch.Tensor], None]
HALF_PRECISION_SCALE = 1024.0
"""Gradients in float16 are held this many times larger: most probabilities are below what float16 can tell from 0."""


def linear_cross_entropy_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count_hits: CountHits | None = None,
    chunk_rows: int | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropies of an output layer's scores, in nats; float32 scalar. Never holds them all.

    Under autocast the products are made in its type, as the layer itself would make them; the softmax is float32.

    Args:
        hidden: `[S, h]`, what the output layer is given.
        weight, bias: the output layer's, `[V, h]` and `[V]`.
        targets: int64 `[S]`.
        label_smoothing: share of the target spread over the vocabulary (Szegedy et al., 2016, section 7).
        count_hits: is told, part by part, of how many positions the target has the highest score. (Or shares it, as
            happens in 16 bits.)
        chunk_rows: positions whose scores are held at a time; None chooses by the vocabulary and the device.
    """
    rows = chunk_rows or _chunk_rows(weight.shape[0], hidden.device.type)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, count_hits, rows)


def cross_entropy_sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    count_hits: CountHits | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropies of given scores, in nats; float32 scalar. Brings to float32 a few at a time.

    For models whose scores are more than the output layer's product: capped, or scaled.

    Args:
        logits: `[S, V]`, any float type.
        targets: int64 `[S]`.
        label_smoothing, count_hits: as above.
    """
    rows = _chunk_rows(logits.shape[1], logits.device.type)
    return _CrossEntropy.apply(logits, targets, label_smoothing, count_hits, rows)


def losses_and_hits(scores: Iterator[torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For evaluation: each token's cross-entropy (float32 `[S]`) and whether it is the most likely one (bool `[S]`).

    Args:
        scores: logits in parts, `[S', V]` each, in the order of the targets.
        targets: int64 `[S]`.
    """
    losses, hits, start = [], [], 0
    for part in scores:
        of_part = targets[start : start + len(part)]
        losses.append(functional.cross_entropy(part.float(), of_part, reduction="none"))
        hits.append(part.argmax(dim=-1) == of_part)
        start += len(part)
    if not losses:
        return torch.zeros(0, device=targets.device), torch.zeros(0, dtype=torch.bool, device=targets.device)
    return torch.cat(losses), torch.cat(hits)


def linear_logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Iterator[torch.Tensor]:
    """An output layer's scores, `[S, V]` in parts."""
    for part in hidden.split(_chunk_rows(weight.shape[0], hidden.device.type)):
        yield functional.linear(part, weight, bias)


def chunk_bytes(device_type: str) -> int:
    """Float32 scores held at a time: on a GPU enough for its matrix products, on CPU what stays near its caches."""
    return 2**28 if device_type == "cuda" else 2**25


def _chunk_rows(vocab_size: int, device_type: str) -> int:
    return max(chunk_bytes(device_type) // (4 * vocab_size), 16)


class _LinearCrossEntropy(torch.autograd.Function):
    """Scores, loss and gradients of a chunk in one go; the backward pass only scales what is there."""

    @staticmethod
    def forward(
        ctx, hidden, weight, bias, targets, label_smoothing: float, count_hits: CountHits | None, chunk_rows: int
    ) -> torch.Tensor:  # fmt: skip
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        compute_type = _compute_type(hidden)
        ctx.gradient_scale = HALF_PRECISION_SCALE if compute_type is torch.float16 else 1.0
        ctx.types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_hidden = torch.empty_like(hidden, dtype=compute_type) if needs_hidden else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(compute_type)
            offset = None if bias is None else bias.to(compute_type)
            for start in range(0, len(hidden), chunk_rows):
                scores = gradient = None  # or the last chunk's would still be held while these are made
                part = hidden[start : start + chunk_rows].to(compute_type)
                scores = functional.linear(part, matrix, offset).float()
                total += _loss_and_gradient_(scores, targets[start : start + chunk_rows], label_smoothing, count_hits)
                gradient = scores.mul_(ctx.gradient_scale).to(compute_type) if ctx.gradient_scale != 1 else scores
                gradient = gradient.to(compute_type)
                if needs_hidden:
                    torch.mm(gradient, matrix, out=of_hidden[start : start + chunk_rows])
                if needs_weight and compute_type is not torch.bfloat16:
                    # float16 would overflow in a sum over many rows, and no loss scale could mend it.
                    of_weight.addmm_(gradient.float().t(), part.float())
                elif needs_weight:
                    of_weight += gradient.t() @ part
                if needs_bias:
                    of_bias += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradient = gradient / ctx.gradient_scale
        scaled = [
            # In place: this is the only use, and the weight's is as large as the weight.
            kept.mul_(gradient).to(kind) if kept is not None and kept.dtype is torch.float32
            else (kept.float() * gradient).to(kind) if kept is not None else None
            for kept, kind in zip(ctx.saved_tensors, ctx.types, strict=True)
        ]  # fmt: skip
        return (*scaled, None, None, None, None)


class _CrossEntropy(torch.autograd.Function):
    """The same for scores that are there already: their gradient is kept in their own type."""

    @staticmethod
    def forward(
        ctx, logits, targets, label_smoothing: float, count_hits: CountHits | None, chunk_rows: int
    ) -> torch.Tensor:  # fmt: skip
        ctx.gradient_scale = HALF_PRECISION_SCALE if logits.dtype is torch.float16 else 1.0
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        kept = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), chunk_rows):
            chunk = slice(start, start + chunk_rows)
            scores = logits[chunk].to(torch.float32, copy=True)
            total += _loss_and_gradient_(scores, targets[chunk], label_smoothing, count_hits)
            if kept is not None:
                kept[chunk] = scores.mul_(ctx.gradient_scale)
        ctx.save_for_backward(kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (kept,) = ctx.saved_tensors
        return kept.mul_(gradient / ctx.gradient_scale), None, None, None, None


def _compute_type(hidden: torch.Tensor) -> torch.dtype:
    """The type in which autocast makes a linear layer's product; without it, that of what the layer is given."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _loss_and_gradient_(
    scores: torch.Tensor, targets: torch.Tensor, label_smoothing: float, count_hits: CountHits | None
) -> torch.Tensor:
    """The chunk's loss sum; `scores` (float32 `[S', V]`) becomes its gradient, in place.

    With targets `q = (1 - e) * onehot + e / V`: loss `= -sum(q * log p)`, gradient `= p - q`. Nothing as large as the
    scores is made beside them (`logsumexp` would).
    """
    vocab_size = scores.shape[1]
    column = targets[:, None]
    scores.sub_(scores.amax(dim=1, keepdim=True))  # so that no exponential overflows
    of_targets = scores.gather(1, column)
    if count_hits is not None:
        count_hits((of_targets == 0).sum())
    mean_score = scores.mean(dim=1, keepdim=True) if label_smoothing else None
    normalizer = scores.exp_().sum(dim=1, keepdim=True)
    log_normalizer = normalizer.log()
    loss = (log_normalizer - of_targets).sum()
    if label_smoothing:
        spread = (log_normalizer - mean_score).sum()
        loss = (1 - label_smoothing) * loss + label_smoothing * spread
    scores.div_(normalizer)
    scores.scatter_add_(1, column, scores.new_full((1, 1), label_smoothing - 1).expand(len(targets), 1))
    if label_smoothing:
        scores.sub_(label_smoothing / vocab_size)
    return loss


class EvaluationSums:
    """Sums over batches, in float64 on the device; memory does not grow with the data.

    A sequence is a row (a document); it is right if every one of its supervised tokens is. A row with none does not
    count.
    """

    def __init__(self, device: torch.device | str):
        # loss, tokens, right tokens, sequences, right sequences
        self._sums = torch.zeros(5, dtype=torch.float64, device=_with_float64(device))

    @torch.no_grad()
    def add(self, losses: torch.Tensor, hits: torch.Tensor, rows: torch.Tensor, *, num_rows: int) -> None:
        """Adds a batch.

        Args:
            losses: float32 `[S]`, each token's cross-entropy.
            hits: bool `[S]`, whether it is the most likely one.
            rows: int64 `[S]`, the row in which it stands, from 0 in ascending order.
            num_rows: rows of the batch that have a supervised token.
        """
        wrong = torch.zeros(len(rows) + 1, dtype=torch.int64, device=rows.device)
        # Rows numbered anew without those that have no target: the batch has as many as `num_rows` says.
        number = torch.zeros_like(rows)
        if len(rows):
            number[1:] = (rows[1:] != rows[:-1]).cumsum(0)
        wrong.index_add_(0, number, (~hits).long())
        right_rows = (wrong[:num_rows] == 0).sum()
        # A token's loss in float32, their sum in float64: the total does not depend on how rows share batches.
        sums = [losses.to(self._sums.dtype).sum(), hits.sum(), right_rows]
        loss, right, right_rows = (value.to(self._sums) for value in sums)
        tokens, rows_counted = (loss.new_full((), float(count)) for count in (len(losses), num_rows))
        self._sums += torch.stack([loss, tokens, right, rows_counted, right_rows])

    @property
    def tensor(self) -> torch.Tensor:
        """The five sums, to be added up over processes in place."""
        return self._sums

    @property
    def num_sequences(self) -> int:
        return int(self._sums[3])

    def result(self) -> EvaluationResult:
        """The means. Perplexity is the exponential of the loss (infinite where that overflows)."""
        loss_sum, tokens, right, sequences, right_sequences = self._sums.tolist()
        loss = loss_sum / tokens if tokens else math.nan
        return EvaluationResult(
            loss=loss,
            perplexity=perplexity_of(loss),
            token_accuracy=right / tokens if tokens else math.nan,
            sequence_accuracy=right_sequences / sequences if sequences else math.nan,
        )


def perplexity_of(loss: float) -> float:
    """The exponential of a loss in nats a token; infinite where that overflows."""
    return math.inf if loss >= 700 else math.exp(loss)


def _with_float64(device: torch.device | str) -> torch.device | str:
    """Apple's GPUs have no float64: there the sums live on the CPU."""
    return "cpu" if str(device).startswith("mps") else device
