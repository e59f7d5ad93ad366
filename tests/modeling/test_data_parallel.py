"""Sums of gradients with DDP: equal to a sum by hand, whichever processes fail, and wherever they fail."""

from __future__ import annotations

import itertools
import os
from contextlib import nullcontext

import pytest
import torch
from torch import distributed, nn

from sft.common.device_errors import is_lost_connection, is_out_of_memory
from sft.common.errors import ModelError
from sft.modeling.data_parallel import Failure, GradientSum, MicroBatchLoss
from tests.support import forked, messages

SIZE, LAYERS = 24, 4
BUCKET_MIB = SIZE * SIZE * 4 / 2**20
"""Such that each layer's weight fills a bucket."""


LATE = ("sending the last bucket", "after the last bucket", "after the pass")
"""Points of the last backward pass at which all buckets are announced."""


class Chain(nn.Module):
    """Linear layers; a batch can skip some of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(LAYERS))
        self.register_buffer("shift", torch.zeros(SIZE))


class Passing(torch.autograd.Function):
    """Calls a function in its backward pass."""

    @staticmethod
    def forward(ctx, inputs, call):
        ctx.call = call
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.call()
        return gradient, None


def loss_sum(model, batch):
    hidden = batch["inputs"]
    if "on_end" in batch:  # the gradient of the inputs comes after that of all weights
        hidden = Passing.apply(hidden.clone().requires_grad_(), batch["on_end"])
    for number, layer in enumerate(model.layers):
        if number not in batch.get("skipped", ()):
            hidden = torch.tanh(layer(hidden) + model.shift)
    return hidden.sum()


class Step:
    """Steps of two micro-batches on this process, with failures."""

    def __init__(self, **options):
        self.model, self.rank, self.world_size = Chain(), distributed.get_rank(), distributed.get_world_size()
        if self.rank == 1:
            nn.init.zeros_(self.model.layers[0].weight)  # rank 0's count
        group = distributed.new_group(backend="gloo")
        self.loss = MicroBatchLoss(self.model, loss_sum)
        self.sum = GradientSum(self.loss, group, **{"bucket_cap_mb": BUCKET_MIB, **options})
        self.backward = 0
        self.failing = None
        for number, weight in enumerate(self.weights):
            weight.register_post_accumulate_grad_hook(lambda _, number=number: self._fail(number))
        exchange = self.sum._exchange
        send = exchange._send

        def failing_send(bucket):
            if exchange._is_complete:
                self._fail(LATE[0])
            return send(bucket)

        exchange._send = failing_send

    @property
    def weights(self):
        return list(self.model.parameters())

    def _fail(self, number):
        if self.failing == (self.backward, number):
            self.failing = None
            raise torch.OutOfMemoryError("out of memory (test)")

    def batch(self, rank, micro_batch, **more):
        generator = torch.Generator().manual_seed(10 * rank + micro_batch)
        return {"inputs": torch.randn(3, SIZE, generator=generator), **more}

    def run(self, failing=None, skipped=((), ())):
        """One attempt.

        Args:
            failing: micro-batch, and the point at which this process fails: a weight, when it gets its gradient; -1,
                before the pass; or one of `LATE`.
            skipped: the layers that each micro-batch skips.
        """
        self.failing = failing
        self.sum.begin_step(accumulates=True)
        failure = Failure.NONE
        for self.backward in range(2):
            try:
                if failing == (self.backward, -1):
                    raise torch.OutOfMemoryError("out of memory (test)")
                batch = self.batch(self.rank, self.backward, skipped=skipped[self.backward])
                batch["on_end"] = lambda: self._fail(LATE[1])
                with self.sum.without_reduction() if self.backward == 0 else nullcontext():
                    self.sum.module(batch).backward()
                self._fail(LATE[2])
            except torch.OutOfMemoryError:
                failure = Failure.OUT_OF_MEMORY
                break
        self.failing = None
        return self.sum.end_step(failure)

    def expected(self):
        """The sum of all processes' gradients, computed here."""
        total = 0
        for rank, micro_batch in itertools.product(range(self.world_size), range(2)):
            total = total + loss_sum(self.model, self.batch(rank, micro_batch))
        return torch.autograd.grad(total, self.weights)

    def gradients(self):
        gradients = [None if weight.grad is None else weight.grad.clone() for weight in self.weights]
        for weight in self.weights:
            weight.grad = None
        return gradients


def in_group(check, *arguments):
    distributed.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    torch.set_num_threads(1)
    check(*arguments)
    distributed.destroy_process_group()
    return 0


def errors_on(tmp_path, processes, check, *arguments):
    """What went wrong in several processes that run a check; empty if it holds in all of them."""
    done = forked.call(tmp_path, in_group, check, *arguments, processes=processes)
    return "" if done.status == 0 else done.err or f"exit status {done.status}"


def check_failures(stride):
    step = Step()
    assert step.run() == Failure.NONE
    first = step.gradients()
    for found, expected in zip(first, step.expected(), strict=True):
        torch.testing.assert_close(found, expected)
    points = [(micro_batch, weight) for micro_batch in range(2) for weight in range(-1, 2 * LAYERS)]
    # In the last pass, the last weight's gradient completes the last bucket: nothing is left that could fail.
    points.remove((1, 0))
    points += [(1, point) for point in LATE]
    ranks = [set(each) for n in (1, 2, step.world_size) for each in itertools.combinations(range(step.world_size), n)]
    for number, (point, failing) in enumerate(itertools.islice(itertools.product(points, ranks), 0, None, stride)):
        # Processes that fail together do so at different points.
        own = points[(points.index(point) + 3 * step.rank) % len(points)]
        assert step.run(own if step.rank in failing else None) == Failure.OUT_OF_MEMORY, (point, failing)
        step.sum.rewrap(Failure.OUT_OF_MEMORY)
        for _ in range(1 + number % 2):  # the next failure is in the first or a later step of a DDP
            assert step.run() == Failure.NONE
            assert all(map(torch.equal, step.gradients(), first))
    assert not step.sum.finds_unused


@pytest.mark.parametrize(
    ("processes", "stride"),
    [(2, 4), pytest.param(2, 1, marks=pytest.mark.slow), pytest.param(4, 1, marks=pytest.mark.slow)],
)
def test_any_processes_may_fail_at_any_gradient(tmp_path, processes, stride):
    assert errors_on(tmp_path, processes, check_failures, stride) == ""


def check_late_failures(finds_unused):
    step = Step(finds_unused=finds_unused)
    skipped = ((2,), (2,)) if finds_unused and step.rank == 0 else ((), ())
    assert step.run(skipped=skipped) == Failure.NONE
    first = step.gradients()
    for n in range(1, step.world_size + 1):
        for failing in itertools.combinations(range(step.world_size), n):
            for number, point in enumerate(LATE):
                # The second of them fails at another point, the third before its last backward pass.
                place = failing.index(step.rank) if step.rank in failing else None
                own = {None: None, 0: (1, point), 1: (1, LATE[number - 1]), 2: (1, -1)}[place]
                assert step.run(own, skipped=skipped) == Failure.OUT_OF_MEMORY, (point, failing)
                step.sum.rewrap(Failure.OUT_OF_MEMORY)
                assert step.run(skipped=skipped) == Failure.NONE
                assert all(map(torch.equal, step.gradients(), first))


@pytest.mark.parametrize("finds_unused", [False, True])
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_processes_may_fail_after_the_last_bucket(tmp_path, processes, finds_unused):
    assert errors_on(tmp_path, processes, check_late_failures, finds_unused) == ""


def check_lost_peer(point, own):
    step = Step()
    step.run()
    step.gradients()
    if step.rank == 1:
        step._fail = lambda number: os._exit(0) if number == point and step.backward == 1 else None
        step.run()

    def run_and_agree():
        step.run(own)  # its last header may have arrived
        distributed.all_reduce(torch.ones(1), group=step.sum.cpu_group)

    with pytest.raises((RuntimeError, distributed.DistError)) as lost:
        run_and_agree()
    assert is_lost_connection(lost.value), str(lost.value)
    assert not is_out_of_memory(lost.value)
    os._exit(0)  # without the peer, the group cannot be closed


@pytest.mark.parametrize(("point", "own"), [(7, None), (3, (1, 5)), (LATE[1], None), (LATE[2], (1, LATE[2]))])
def test_a_process_that_is_gone_is_an_error_of_the_connection(tmp_path, point, own):
    """Whatever the others are doing: reducing buckets, contributing zeros, reading headers."""
    assert errors_on(tmp_path, 2, check_lost_peer, point, own) == ""


def check_unreached():
    step = Step()
    step.loss._loss_sum = lambda model, batch: step.partial.append(loss_sum(model, batch)) or step.partial[-1]
    for failure in (Failure.UNUSED_WEIGHTS, Failure.UNUSED_WEIGHTS):
        step.partial = []
        step.sum.begin_step(accumulates=False)
        step.sum.module(step.batch(step.rank, 0))
        # As a model does that computes the gradient of a part of its loss by itself.
        torch.autograd.backward(step.partial[0], inputs=step.weights[:4])
        assert step.sum.end_step(Failure.NONE) == failure
        if not step.sum.finds_unused:
            step.sum.rewrap(failure)
    with pytest.raises(ModelError, match=messages.DDP_INCOMPLETE):
        step.sum.rewrap(failure)


def test_a_step_that_stays_incomplete_although_unused_weights_are_searched_for_is_an_error(tmp_path):
    assert errors_on(tmp_path, 2, check_unreached) == ""


def check_hooks():
    step = Step()
    assert len(step.loss._forward_hooks) == 1
    assert not Step(marks_bad_losses=False).loss._forward_hooks
    step.run((0, 3))
    step.sum.rewrap(Failure.OUT_OF_MEMORY)
    assert len(step.loss._forward_hooks) == 1


def test_losses_are_checked_by_the_sum_alone(tmp_path):
    """On one process the step checks its loss itself, once."""
    assert not MicroBatchLoss(Chain(), loss_sum)._forward_hooks
    assert errors_on(tmp_path, 2, check_hooks) == ""


def check_unused(skipped_by):
    step = Step()
    step.run()
    expected = step.gradients()
    skipped = ((2,), (2,)) if step.rank in skipped_by else ((), ())
    assert step.run(skipped=skipped) == Failure.UNUSED_WEIGHTS
    step.sum.rewrap(Failure.UNUSED_WEIGHTS)
    assert step.sum.finds_unused
    for _ in range(2):
        assert step.run(skipped=skipped) == Failure.NONE
        found = step.gradients()
        assert [gradient is None for gradient in found[4:6]] == 2 * [len(skipped_by) == step.world_size]
        assert all(gradient is not None for gradient in found[:4] + found[6:])
    assert step.run((1, 3) if step.rank == 1 else None, skipped=skipped) == Failure.OUT_OF_MEMORY
    step.sum.rewrap(Failure.OUT_OF_MEMORY)
    assert step.run() == Failure.NONE
    assert all(map(torch.equal, step.gradients(), expected))


@pytest.mark.parametrize("skipped_by", [{0}, {1}, {0, 1}])
def test_weights_without_a_gradient_are_found_and_searched_for_from_then_on(tmp_path, skipped_by):
    assert errors_on(tmp_path, 2, check_unused, skipped_by) == ""


def check_options():
    step = Step(comm_dtype=torch.bfloat16, syncs_buffers=True)
    step.model.shift += step.rank
    assert step.run() == Failure.NONE
    assert not step.model.shift.any()
    for found, expected in zip(step.gradients(), step.expected(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.2)
        assert torch.equal(found, found.bfloat16().float())
    assert step.run((1, 3) if step.rank == 1 else None) == Failure.OUT_OF_MEMORY


def test_gradients_are_sent_in_bfloat16_and_buffers_copied(tmp_path):
    assert errors_on(tmp_path, 2, check_options) == ""


def check_bad_loss():
    step = Step()
    if step.rank == 1:
        usual, step.loss._loss_sum = step.loss._loss_sum, lambda *given: usual(*given) + torch.inf
    step.run()
    assert any(gradient.isnan().any() for gradient in step.gradients())
    step.loss._loss_sum = loss_sum
    step.run()
    assert all(gradient.isfinite().all() for gradient in step.gradients())


def test_a_loss_that_is_not_finite_on_one_process_makes_the_sum_nan(tmp_path):
    assert errors_on(tmp_path, 2, check_bad_loss) == ""
