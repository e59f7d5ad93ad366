"""Copies of state in host memory: later training does not change them."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from sft.modeling import state_copy
from sft.modeling.state_copy import StateCopier, copy_to_memory, state_bytes
from tests.support.small_models import build_model


def test_a_copy_is_independent_of_further_training():
    model = build_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step(times):
        for _ in range(times):
            model(input_ids=torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
            optimizer.step()

    step(1)
    expected = [
        torch.cat([weight.flatten() for weight in model.state_dict().values()]).clone(),
        [group["lr"] for group in optimizer.param_groups],
        [value.clone() for values in optimizer.state.values() for value in values.values()],
    ]
    weights, state = copy_to_memory(model.state_dict()), copy_to_memory(optimizer.state_dict())
    step(2)
    optimizer.param_groups[0]["lr"] = 5.0
    assert torch.equal(torch.cat([weight.flatten() for weight in weights.values()]), expected[0])
    assert [group["lr"] for group in state["param_groups"]] == expected[1]
    found = [value for values in state["state"].values() for value in values.values()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected[2], strict=True))
    assert state["param_groups"][0]["betas"] == (0.9, 0.999)
    again = torch.optim.AdamW(model.parameters(), lr=1.0)
    again.load_state_dict(state)


def test_a_shared_tensor_is_shared_in_the_copy_and_counts_once():
    weight = torch.ones(3, 4)
    state = {"embedding": weight, "head": weight, "view": weight[:1], "others": [torch.zeros(2, dtype=torch.float64)]}
    copy = copy_to_memory(state)
    assert copy["embedding"] is copy["head"]
    assert copy["view"].data_ptr() != copy["head"].data_ptr()
    assert state_bytes([weight, weight, state["others"]]) == 48 + 16


class Quantized(torch.Tensor):
    """A wrapper without its own storage, like the state of 8-bit optimizers: all have the same address."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return Quantized(function(args[0].inner, *args[1:], **(kwargs or {})))


def test_wrapper_tensors_are_copied_one_by_one():
    first, second = Quantized(torch.ones(2)), Quantized(torch.zeros(2))
    assert first.data_ptr() == second.data_ptr()
    copy = copy_to_memory({"exp_avg": first, "exp_avg_sq": second})
    first.inner.add_(1)
    assert copy["exp_avg"].inner.tolist() == [1, 1]
    assert copy["exp_avg_sq"].inner.tolist() == [0, 0]
    assert state_bytes([first, second]) == 16


def test_state_bytes_of_an_empty_state_is_zero():
    assert state_bytes({}) == 0


@pytest.fixture
def blocks(monkeypatch):
    """Pretends that all tensors are on a GPU; returns the sizes of the blocks of "pinned" memory."""
    sizes = []

    def block(num_bytes):
        sizes.append(1 << (num_bytes - 1).bit_length())
        return np.full(sizes[-1], 255, dtype=np.uint8)

    monkeypatch.setattr(state_copy, "_is_on_gpu", lambda tensor: True)
    monkeypatch.setattr(state_copy, "_pinned_block", block)
    monkeypatch.setattr(state_copy, "_wait_for_copies", lambda: None)
    monkeypatch.setattr(state_copy, "_BLOCK_BYTES", 2**16)
    return sizes


def trained_optimizer():
    model = build_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(input_ids=torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    return model, optimizer


def saved(state):
    torch.save(state, file := io.BytesIO())
    return file.getvalue()


def test_pinned_copies_are_equal_and_saved_as_ordinary_ones(blocks):
    model, optimizer = trained_optimizer()
    state = {
        "optimizer": optimizer.state_dict(),
        "half": torch.randn(7, 3).bfloat16(),
        "transposed": torch.randn(5, 9).t(),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
    }
    assert saved(StateCopier().copy(state)) == saved(copy_to_memory(state))
    weights = StateCopier().copy(model.state_dict())
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight)
        assert weights[name].untyped_storage().nbytes() == weight.nbytes
    assert sum(blocks) <= 2 * state_bytes([state, model.state_dict()])


def test_pinned_memory_is_used_again(blocks):
    _, optimizer = trained_optimizer()
    copier = StateCopier()
    copier.copy(optimizer.state_dict())
    before = list(blocks)
    assert copier.held_bytes == sum(before)
    optimizer.step()
    again = copier.copy(optimizer.state_dict())
    assert blocks == before
    for name, values in optimizer.state_dict()["state"].items():
        assert torch.equal(again["state"][name]["exp_avg"], values["exp_avg"])
    copier.copy([optimizer.state_dict(), torch.ones(2**16)])  # more than it has
    assert blocks[: len(before)] == before
    assert blocks[len(before) :] == [2**18]


def test_pinned_copies_share_what_the_state_shares(blocks):
    weight = torch.ones(3, 4)
    copy = StateCopier().copy({"embedding": weight, "head": weight, "view": weight[:1]})
    assert copy["embedding"] is copy["head"]
    assert copy["view"].data_ptr() != copy["head"].data_ptr()


def test_a_copy_that_does_not_fit_holds_no_pinned_memory(blocks, monkeypatch):
    copier = StateCopier()
    copier.copy(torch.ones(4))

    def fail(num_bytes):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(state_copy, "_pinned_block", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        copier.copy(torch.ones(2**16))
    assert copier.held_bytes == 0


def test_a_state_in_main_memory_needs_no_pinned_memory():
    copier = StateCopier()
    assert copier.copy(torch.ones(4)).tolist() == [1, 1, 1, 1]
    assert copier.held_bytes == 0
