"""Gradients summed over processes, once a step.

Not by DistributedDataParallel, which sums while the last micro-batch's backward pass still runs: a process that runs
out of memory in it would leave the others waiting for good. Here every process first learns whether all of them have
their gradient, and no second set of gradients is held in buckets. The price: the sum does not overlap with the backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import distributed, nn

BUCKET_BYTES = 2**26
"""Gradients that travel together: few enough calls, little memory."""


def broadcast_weights(weights: Sequence[nn.Parameter]) -> None:
    """Gives every process the first one's weights, should they have started from other random numbers."""
    for weight in weights:
        distributed.broadcast(weight.data, src=0)


def sum_gradients(weights: Sequence[nn.Parameter], has_gradient: Sequence[bool]) -> None:
    """Adds up the gradients of all processes, in place, in the type that they have.

    Args:
        weights: those that are trained, in the same order on every process.
        has_gradient: for each, whether any process has a gradient: it is zero where this one has none.
    """
    gradients = []
    for weight, has in zip(weights, has_gradient, strict=True):
        if has and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if has:
            gradients.append(weight.grad)
    for bucket in _buckets(gradients):
        together = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(together)
        parts = together.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one type, up to `BUCKET_BYTES` together."""
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
