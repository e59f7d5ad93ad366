"""Gradients are clipped as torch does it, with one pass over them for the norm and none to scale them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sft.training.clipping import clip_gradient
from tests.support.short_of_memory import assert_equal_to_the_bit, train_and_read

OPTIMIZERS = {
    "adamw_torch_fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
    "adamw_torch": lambda weights: torch.optim.AdamW(weights, lr=0.01),
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9),
}


def trained(optimizer: str, max_norm: float, clip) -> list[torch.Tensor]:
    """Weights after three steps on random gradients, whose norm is about 10."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(size)) for size in (1, 7, 100)]
    stepping = OPTIMIZERS[optimizer]([*weights, torch.nn.Parameter(torch.zeros(3))])  # the last one gets no gradient
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        clip(weights, max_norm, stepping)
        stepping.step()
    return weights


def clip_by_own_norm(weights, max_norm, optimizer):
    norm = torch.linalg.vector_norm(torch.stack([weight.grad.norm() for weight in weights]))
    clip_gradient(weights, norm, max_norm, optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [0.5, 1000.0])
def test_clipping_equals_that_of_torch(optimizer, max_norm):
    found = trained(optimizer, max_norm, clip_by_own_norm)
    expected = trained(optimizer, max_norm, lambda weights, *_: torch.nn.utils.clip_grad_norm_(weights, max_norm))
    tolerance = {"rtol": 0, "atol": 0} if max_norm > 10 else {}
    torch.testing.assert_close(found, expected, **tolerance)


class Calls(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3, 1000.0])
def test_a_step_reads_its_gradient_once_for_the_norm_and_never_scales_it(prepare, max_grad_norm):
    prepared, model = prepare(max_grad_norm=max_grad_norm)
    with Calls() as calls:
        train_and_read(prepared, model)
    steps = prepared.trainer.state.global_step
    assert (
        calls.counts["_foreach_norm"] == calls.counts["_fused_adamw_"] / 2 == steps
    )  # two groups: with and without decay
    assert not calls.counts["_foreach_mul_"]


def test_gradients_that_are_not_clipped_train_to_the_bit_as_without_clipping(prepare):
    expected = train_and_read(*prepare(max_grad_norm=0.0))
    assert_equal_to_the_bit(train_and_read(*prepare(max_grad_norm=1000.0)), expected)


def test_a_run_clips_alike_with_and_without_a_fused_optimizer(prepare):
    """With sgd the size of the gradient matters; Adam would hide a factor."""
    settings = {"optim": "sgd", "max_grad_norm": 0.01, "gradient_accumulation_steps": 2}
    prepared, model = prepare(**settings)
    found = train_and_read(prepared, model)
    norms = [event["grad_norm"] for event in prepared.trainer.state.log_history if "grad_norm" in event]
    assert min(norms) > 0.1  # all of them were clipped
    prepared, model = prepare(**settings)
    prepared.trainer.optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    torch.testing.assert_close(train_and_read(prepared, model), found)
