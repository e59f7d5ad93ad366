"""AdamW for bfloat16 weights: small updates are not lost, and a resumed optimizer continues to the bit."""

import copy

import pytest
import torch

from sft.training import bfloat16_adamw
from sft.training.bfloat16_adamw import BFloat16AdamW, round_stochastically

BOTH = pytest.mark.parametrize("rounding", ["split", "stochastic"])


def weights(dtype, shape=(33, 17)):
    torch.manual_seed(1)
    return torch.nn.Parameter(torch.randn(shape).to(dtype))


def train(optimizer, weight, steps, start=0):
    for step in range(start, start + steps):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
        optimizer.step()


@BOTH
def test_weights_of_other_types_are_updated_as_by_torch(rounding):
    ours, theirs = weights(torch.float32), weights(torch.float32)
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    train(BFloat16AdamW([ours], rounding=rounding, seed=0, **options), ours, 20)
    train(torch.optim.AdamW([theirs], **options), theirs, 20)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rounding", "most"), [("split", 0.02), ("stochastic", 0.05), (None, None)])
def test_updates_too_small_for_bfloat16_add_up(rounding, most):
    """500 updates of 1e-5 on weights of 1: each is a 400th of what rounds to the next bfloat16.

    The first moment, a bfloat16 too, stays up to 2 % below a constant gradient.
    """
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0)
    if rounding:
        optimizer = BFloat16AdamW([weight], rounding=rounding, seed=0, lr=1e-5)
    for _ in range(500):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1 - weight.float().mean().item()
    if rounding is None:
        assert moved == 0
    else:
        kept = 0.0
        if rounding == "split":  # in units of a float32 at 1
            kept = optimizer.state[weight]["lower"].float().mean().item() * 2**-24
        assert moved - kept == pytest.approx(500 * 1e-5, rel=most)


def test_split_weights_are_those_of_a_float32_copy_to_the_bit():
    upper, copied = weights(torch.bfloat16), weights(torch.bfloat16)
    copied.data = copied.data.float()
    split = BFloat16AdamW([upper], rounding="split", seed=0, lr=1e-3, weight_decay=0.1)
    plain = BFloat16AdamW([copied], rounding="split", seed=0, lr=1e-3, weight_decay=0.1)
    for step in range(50):
        gradient = torch.randn(upper.shape, generator=torch.Generator().manual_seed(step)).bfloat16()
        upper.grad, copied.grad = gradient, gradient.float()
        for optimizer, weight in ((split, upper), (plain, copied)):
            optimizer.step()
            optimizer.state[weight]["exp_avg"] = optimizer.state[weight]["exp_avg"].bfloat16().to(weight.dtype)
    bits = (upper.data.view(torch.int16).int() << 16) + split.state[upper]["lower"].int()
    assert torch.equal(bits.view(torch.float32), copied)
    assert (upper.float() - copied).abs().max() <= copied.abs().max() * 2**-8


def test_rounding_is_exact_in_expectation_and_goes_to_neighbors():
    exact = torch.tensor([1.0 + 2**-9, -3.1, 1e-30, 0.0, 1.5])
    drawn = round_stochastically(exact.repeat(20_000, 1), torch.Generator().manual_seed(0)).double()
    assert all(len(column.unique()) <= 2 for column in drawn.T)
    torch.testing.assert_close(drawn.mean(0), exact.double(), rtol=2e-4, atol=0)
    assert drawn[:, 3:].unique(dim=0).tolist() == [[0.0, 1.5]]


@BOTH
def test_a_resumed_optimizer_continues_to_the_bit(rounding, tmp_path):
    whole = weights(torch.bfloat16)
    optimizer = BFloat16AdamW([whole], rounding=rounding, seed=3, lr=1e-3, weight_decay=0.1)
    train(optimizer, whole, 10)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(whole)
    train(optimizer, whole, 10, start=10)
    again = BFloat16AdamW([resumed], rounding=rounding, seed=3, lr=1e-3, weight_decay=0.1)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert again.state[resumed]["exp_avg_sq"].dtype == torch.float32
    train(again, resumed, 10, start=10)
    assert torch.equal(whole, resumed)


@BOTH
def test_parts_of_a_weight_give_the_same_without_randomness(rounding, monkeypatch):
    whole, in_parts = weights(torch.bfloat16), weights(torch.bfloat16)
    train(BFloat16AdamW([whole], rounding=rounding, seed=0), whole, 3)
    monkeypatch.setattr(bfloat16_adamw, "_PART", 100)
    train(BFloat16AdamW([in_parts], rounding=rounding, seed=0), in_parts, 3)
    assert torch.equal(whole, in_parts) or rounding == "stochastic"
    transposed = torch.nn.Parameter(weights(torch.bfloat16).data.T.contiguous().T)
    assert not transposed.is_contiguous()
    train(BFloat16AdamW([transposed], rounding=rounding, seed=0), transposed, 3)
    torch.testing.assert_close(transposed, whole, rtol=2**-7, atol=1e-2)
