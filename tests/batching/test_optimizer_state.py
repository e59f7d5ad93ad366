"""Bytes of optimizer state by name, and those of a real AdamW."""

from __future__ import annotations

import pytest
import torch

from sft.batching.optimizer_state import optimizer_bytes
from sft.training.bfloat16_adamw import BFloat16AdamW


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adamw_torch_fused", 8),
        ("adamw_torch", 8),
        ("paged_adamw_32bit", 8),
        ("stable_adamw", 8),
        ("adamw_bnb_8bit", 2),
        ("paged_adamw_8bit", 2),
        ("adamw_torch_4bit", 1),
        ("ademamix", 12),
        ("ademamix_8bit", 3),
        ("lion_32bit", 4),
        ("lion_8bit", 1),
        ("rmsprop", 4),
        ("adagrad", 4),
        ("sgd", 0),
        ("schedule_free_sgd", 4),
        ("schedule_free_adamw", 8),
        ("lomo", 0),
        ("adalomo", 0),
        ("adafactor", 0.04),
    ],
)
def test_optimizer_bytes_by_name(name, expected):
    assert optimizer_bytes(name) == pytest.approx(expected)


@pytest.mark.parametrize("rounding", ["split", "stochastic"])
def test_optimizer_bytes_are_those_of_an_adamw_for_bfloat16(rounding):
    weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=torch.bfloat16))
    optimizer = BFloat16AdamW([weight], rounding=rounding, seed=0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    held = sum(value.nbytes for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))
    assert held == weight.numel() * optimizer_bytes(f"adamw_bf16_{rounding}", 2)


def test_optimizer_bytes_are_those_of_a_real_adamw():
    for dtype, element in ((torch.float32, 4), (torch.bfloat16, 2)):
        weight = torch.nn.Parameter(torch.zeros(64, 64, dtype=dtype))
        optimizer = torch.optim.AdamW([weight])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        state = optimizer.state[weight]
        held = sum(value.nbytes for name, value in state.items() if name != "step")
        assert held == weight.numel() * optimizer_bytes("adamw_torch", element)
