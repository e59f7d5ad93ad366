"""Models that run out of memory with too many rows, and the results of training them."""

from __future__ import annotations

import torch

from trainer_utils import train


def limit_rows(model, rows: int, *, in_backward: bool = False, from_call: int = 0, to_call: int | None = None):
    """Makes the model raise torch's out-of-memory error for more than `rows` rows; returns the rows of each call.

    In the calls after the first `from_call`, up to the first `to_call`.
    """
    calls = []

    def rows_of(inputs) -> int:
        boundaries = inputs.get("cu_seq_lens_q")
        return len(inputs["input_ids"]) if boundaries is None else len(boundaries) - 1

    def is_short() -> bool:
        return calls[-1] > rows and len(calls) > from_call and (to_call is None or len(calls) <= to_call)

    def forward(module, args, kwargs, output=None):
        calls.append(rows_of(kwargs))
        if is_short() and not in_backward:
            raise torch.OutOfMemoryError("out of memory (test)")

    def backward(module, *_):
        if is_short():
            raise torch.OutOfMemoryError("out of memory (test)")

    model.register_forward_pre_hook(forward, with_kwargs=True)
    if in_backward:
        next(
            layer for layer in model.modules() if hasattr(layer, "q_proj") or hasattr(layer, "c_attn")
        ).register_full_backward_hook(backward)
    return calls


def train_and_read(prepared, model):
    """Trains; returns the final weights and the loss of each step."""
    weights, logged = train_and_read_all(prepared, model)
    return weights, logged[::2]


def train_and_read_all(prepared, model):
    """Trains; returns the final weights, and the loss and token accuracy of each step, alternating."""
    train(prepared)
    history = prepared.trainer.state.log_history
    logged = [event[name] for event in history if "loss" in event for name in ("loss", "token_accuracy")]
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}, logged


def assert_equal_to_the_bit(found, expected):
    assert found[1] == expected[1]
    for name, weight in expected[0].items():
        assert torch.equal(found[0][name], weight), name
