"""DistributedDataParallel, with a reduction that survives a process which cannot finish its backward pass.

DDP reduces a bucket of gradients as soon as its last gradient is there, while the backward pass goes on. A process that
runs out of memory before that would leave the others waiting for its buckets. So the communication hook announces each
bucket in a second group, on the CPU: its number of elements, whether it is the last, its dtype, and why the process
failed, if it did; all of it reduced by maximum. A process that failed reads these headers and contributes zeros to each
announced bucket, until the last one, or until the maximum is 0 elements: no process has a bucket left then. The others
read no header during the pass. After the last bucket one more header follows, for a process that failed later than
that. So all of them find the same reason, and discard the gradient.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sft.common.device_errors import is_out_of_memory
from sft.common.errors import MemoryShortage, ModelError

Batch = Mapping[str, Any]
COMM_DTYPES: dict[str | None, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""`ddp_comm_hook` -> dtype in which gradients are sent."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Failure(IntEnum):
    """Why a step's gradient cannot be used. The highest of all processes' reasons counts."""

    NONE = 0
    UNUSED_WEIGHTS = 1
    """Weights got no gradient, so their buckets never became ready."""
    OUT_OF_MEMORY = 2


class MicroBatchLoss(nn.Module):
    """A model together with its loss, so that all uses of a weight are in one forward call, as DDP requires."""

    def __init__(self, model: nn.Module, loss_sum: Callable[[Any, Batch], torch.Tensor]):
        """
        Args:
            model: the model, unwrapped.
            loss_sum: computes the loss of a micro-batch: a scalar.
        """
        super().__init__()
        self.model = model
        self._loss_sum = loss_sum

    def forward(self, batch: Batch | None) -> torch.Tensor:
        """The loss of a micro-batch. For None every weight is used once, in the order of the model's parameters."""
        if batch is None:
            weights = [weight for weight in self.model.parameters() if weight.requires_grad]
            return torch.stack([weight.sum(dtype=torch.float32) for weight in weights]).sum()
        return self._loss_sum(self.model, batch)


class GradientSum:
    """Sums gradients over processes with DDP. All processes call its methods in the same order."""

    def __init__(
        self,
        loss: MicroBatchLoss,
        cpu_group: distributed.ProcessGroup,
        *,
        bucket_cap_mb: float | None = None,
        finds_unused: bool = False,
        syncs_buffers: bool = False,
        comm_dtype: torch.dtype | None = None,
        marks_bad_losses: bool = True,
    ):
        """
        Args:
            loss: the model and its loss. Its trainable weights become those of rank 0.
            cpu_group: all processes, on gloo; not used for anything else during a step.
            bucket_cap_mb: size of a bucket in MiB; None for torch's default.
            finds_unused: search each graph for weights that get no gradient.
            syncs_buffers: copy rank 0's buffers to all processes before each step.
            comm_dtype: dtype in which gradients are sent; None for their own.
            marks_bad_losses: write NaN into the sum if the loss of any process is not finite.
        """
        self._loss = loss
        self._weights = [weight for weight in loss.parameters() if weight.requires_grad]
        self.cpu_group = cpu_group
        self._syncs_buffers = syncs_buffers
        self._exchange = exchange = _Exchange(cpu_group, comm_dtype, device=self._weights[0].device)
        if marks_bad_losses:
            # Without a reference to self, whose DDP would live as long as the model.
            loss.register_forward_hook(lambda _, __, value: exchange.check_loss(value))
        self._options: dict[str, Any] = {
            "bucket_cap_mb": bucket_cap_mb,
            "gradient_as_bucket_view": True,
            "init_sync": False,
        }
        # torch 2.13 deprecated one name for the other. DDP would copy buffers in a forward pass, which a process that
        # is out of memory does not reach.
        parameters = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        self._options[buffers] = False
        for weight in self._weights:  # new adapters may come from different random numbers
            distributed.broadcast(weight.data, src=0)
        self._wrap(finds_unused)

    def _wrap(self, finds_unused: bool) -> None:
        """Wraps the model in a new DDP whose buckets have their final layout.

        DDP lays out its buckets again in the forward pass after the first reduction, by the order in which gradients
        came. Two passes that use each weight once make this happen here, on all processes together, and in an order
        that depends on the model alone: with the order of a sum, the last bits of a resumed run would change.

        Raises:
            MemoryShortage: if there is no memory for the buckets.
        """
        self.finds_unused = finds_unused
        try:
            self.module = DistributedDataParallel(self._loss, find_unused_parameters=finds_unused, **self._options)
            self.module.register_comm_hook(self._exchange, lambda exchange, bucket: exchange.reduce(bucket))
            for _ in range(2):
                self._drop_gradients()
                self.module(None).backward()
                self.end_step(Failure.NONE)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryShortage(
                f"Out of memory on {self._weights[0].device} for the gradients of all trainable weights alone. Use "
                "lora_config, which trains fewer weights, fsdp, which shards them, or a smaller model."
            ) from error
        self._views = [weight.grad for weight in self._weights if weight.grad is not None]
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for weight in self._weights:
            weight.grad = None
        self._exchange.reset()

    def begin_step(self, *, accumulates: bool) -> None:
        """Prepare a step.

        Args:
            accumulates: whether it has several backward passes. Their gradients are then added up in the buckets;
                without this, in memory of their own.
        """
        self._exchange.reset()
        if self._syncs_buffers:
            for buffer in self._loss.buffers():
                distributed.broadcast(buffer, src=0)
        if accumulates and not self.finds_unused:
            torch._foreach_zero_(self._views)
            for weight, view in zip(self._weights, self._views, strict=True):
                weight.grad = view

    def without_reduction(self) -> AbstractContextManager[None]:
        """A context for all passes of a step but the last."""
        return self.module.no_sync()

    def end_step(self, failure: Failure) -> Failure:
        """Wait until gradients are summed, or until all processes know that they cannot be.

        Args:
            failure: why this process did not finish the step's passes.

        Returns:
            The highest reason of all processes; if it is not NONE, `rewrap` must follow.
        """
        return self._exchange.finish(failure, num_unused_flags=len(self._weights) if self.finds_unused else 0)

    def rewrap(self, failure: Failure) -> None:
        """Discard the gradients and the DDP of a step that failed; search for unused weights if that was the reason.

        Raises:
            ModelError: if the search was on already, so that the step would fail again.
        """
        if failure == Failure.UNUSED_WEIGHTS and self.finds_unused:
            raise ModelError(
                "DDP searched this model's loss for weights without a gradient, and still waits for the gradients of "
                "others: the loss depends on weights that its backward pass does not reach. Train on one process, or "
                "with fsdp, or freeze these weights (lora_config)."
            )
        self._views = []
        del self.module
        gc.collect()  # DDP's hooks on the weights disappear with it
        self._drop_gradients()
        self._wrap(self.finds_unused or failure == Failure.UNUSED_WEIGHTS)


class _Exchange:
    """The buckets of one step: announced, reduced, or contributed to with zeros."""

    def __init__(self, cpu_group: distributed.ProcessGroup, comm_dtype: torch.dtype | None, *, device: torch.device):
        self._cpu_group = cpu_group
        self._comm_dtype = comm_dtype
        self._device = device
        self.reset()

    def reset(self) -> None:
        self._headers: list[tuple[distributed.Work, torch.Tensor]] = []
        self._sums: list[distributed.Work] = []
        self._announced: torch.Tensor | None = None
        """A bucket that is announced but not sent."""
        self._is_complete = False
        """Whether the last bucket was announced."""
        self._is_handed_over = False
        """Whether the last bucket was sent, after which DDP itself reduces which weights were used."""
        self._is_finite: torch.Tensor | None = None
        """Whether all losses of the step are finite, a bool scalar on the device; None if they are not checked."""

    def check_loss(self, loss: torch.Tensor) -> None:
        """Note whether a micro-batch's loss is finite; if it is not, NaN is written into the sum."""
        is_finite = loss.detach().isfinite()
        self._is_finite = is_finite if self._is_finite is None else self._is_finite & is_finite

    def reduce(self, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """DDP's communication hook: the sum of a bucket over all processes."""
        gradient = bucket.buffer()
        if bucket.index() == 0 and self._is_finite is not None:
            gradient[:1] += torch.where(self._is_finite, 0.0, torch.nan).to(gradient.dtype)
        sent = gradient if self._comm_dtype is None else gradient.to(self._comm_dtype)
        self._announce(sent.numel(), bucket.is_last(), sent.dtype, Failure.NONE)
        self._announced, self._is_complete = sent, bucket.is_last()

        def receive(done: torch.futures.Future[Any]) -> torch.Tensor:
            done.value()  # raises the error of a sum that failed
            return gradient if sent is gradient else gradient.copy_(sent)

        future = self._send(sent).get_future().then(receive)
        self._is_handed_over = bucket.is_last()
        return future

    def _announce(self, size: int, is_last: bool, dtype: torch.dtype, failure: Failure) -> torch.Tensor:
        header = torch.tensor([size, is_last, _DTYPES.index(dtype), failure])
        work = distributed.all_reduce(header, distributed.ReduceOp.MAX, group=self._cpu_group, async_op=True)
        self._headers.append((work, header))
        return header

    def _send(self, bucket: torch.Tensor) -> distributed.Work:
        work = distributed.all_reduce(bucket, async_op=True)
        self._sums.append(work)
        self._announced = None
        return work

    def finish(self, failure: Failure, *, num_unused_flags: int) -> Failure:
        """See `GradientSum.end_step`; `num_unused_flags` is the size of DDP's own reduction after the last bucket."""
        if failure == Failure.NONE and not self._is_complete:
            failure = Failure.UNUSED_WEIGHTS
        if failure != Failure.NONE:
            self._contribute_zeros(failure, num_unused_flags)
        if self._is_complete:
            self._announce(0, False, _DTYPES[0], failure)
        for work, _ in self._headers:
            work.wait()
        reasons = [int(header[3]) for _, header in self._headers]
        return Failure(max(failure, *reasons))

    def _contribute_zeros(self, failure: Failure, num_unused_flags: int) -> None:
        if self._announced is not None:
            self._send(torch.zeros_like(self._announced))
        while not self._is_complete:
            header = self._announce(0, False, _DTYPES[0], failure)
            self._headers[-1][0].wait()
            size, is_last, dtype, _ = header.tolist()
            if size == 0:
                break
            self._send(torch.zeros(size, dtype=_DTYPES[dtype], device=self._device))
            self._is_complete = bool(is_last)
        if self._is_complete and num_unused_flags and not self._is_handed_over:
            self._send(torch.zeros(num_unused_flags, dtype=torch.int32, device=self._device))
        for work in self._sums:
            work.wait()
