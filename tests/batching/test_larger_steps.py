"""The share of a step that the optimizer takes."""

import pytest

from sft.batching.larger_steps import larger_step
from sft.common.run_records import ModelFootprint


def footprint(trained=1000):
    return ModelFootprint(
        num_parameters=1000, num_trainable_parameters=trained, weight_bytes=0, hidden_size=1, num_layers=1, vocab_size=1
    )


def test_a_step_of_few_tokens_is_made_larger_until_the_optimizer_takes_little():
    step = larger_step(footprint(), 40, "cpu")
    assert step.optimizer_share == 0.5
    assert step.times == 8
    assert step.saved_share == pytest.approx(1 - (40 + 8 * 40) / (8 * (40 + 40)))
    assert larger_step(footprint(), 160, "cpu").times == 4


@pytest.mark.parametrize(
    ("trained", "tokens", "device", "sharded_over"),
    [
        (1000, 2000, "cpu", 1),
        (10, 100, "cpu", 1),
        (1000, 100, "cpu", 8),
        (1000, 5000, "cuda:1", 1),
        (1000, 1, "mps", 1),
    ],
    ids=["many tokens", "adapters", "sharded", "many tokens on a GPU", "unknown device"],
)
def test_nothing_is_advised_where_the_optimizer_takes_little(trained, tokens, device, sharded_over):
    assert larger_step(footprint(trained), tokens, device, sharded_over=sharded_over) is None


def test_a_gpu_needs_more_tokens():
    assert larger_step(footprint(), 1000, "cpu") is None
    assert larger_step(footprint(), 1000, "cuda:0").times == 8
