"""Copies of state in host memory: later training does not change them."""

from __future__ import annotations

import torch

from sft.modeling.state_copy import copy_to_memory, state_bytes
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
