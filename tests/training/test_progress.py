"""Model FLOP/s in the summary of a run."""

from __future__ import annotations


def test_model_flops_per_second_count_the_trained_tokens(run_sft):
    run = run_sft()
    flops = run.summary["train"]["model_flops_per_second"] * run.summary["train"]["seconds"]
    tokens = run.summary["data"]["train"]["tokens"]
    size = 400 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32  # the output layer, layers, norms
    assert run.summary["train"]["mfu"] is None
    assert 6 * size * tokens < flops < 6 * size * tokens * 1.2  # attention comes on top
