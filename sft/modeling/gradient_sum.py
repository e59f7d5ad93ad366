"""Gradients summed over processes, once per step.

Not by DistributedDataParallel, which reduces while the last micro-batch's backward pass still runs: a process that runs
out of memory there would leave the others waiting forever. Here all processes first agree whether each of them has its
gradient, and no second copy of the gradients is held in buckets. In return the reduction does not overlap with the
backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import distributed, nn

BUCKET_BYTES = 2**26
"""Gradients that are reduced in one call: few calls, little memory."""


def broadcast_weights(weights: Sequence[nn.Parameter]) -> None:
    """Copy rank 0's weights to every process, in case they were initialized from different random numbers."""
    for weight in weights:
        distributed.broadcast(weight.data, src=0)


def sum_gradients(weights: Sequence[nn.Parameter], has_gradient: Sequence[bool]) -> None:
    """Sum the gradients over all processes, in place, in their own type.

    Args:
        weights: the trained weights, in the same order on every process.
        has_gradient: for each weight, whether any process has a gradient; where this one has none, it counts as zero.
    """
    gradients = []
    for weight, has in zip(weights, has_gradient, strict=True):
        if has:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
    for bucket in _buckets(gradients):
        together = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(together)
        parts = together.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Consecutive gradients of one type, up to `BUCKET_BYTES` in total."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        num_bytes = gradient.numel() * gradient.element_size()
        if bucket and (size + num_bytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += num_bytes
    if bucket:
        yield bucket
