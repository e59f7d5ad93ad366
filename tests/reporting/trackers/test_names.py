"""Names and units of logged values in trackers."""

from __future__ import annotations

from sft.reporting.trackers.names import CHARTS, tracked


def test_tracked_names_have_a_group_and_readable_units():
    logs = {
        "loss": 1.5,
        "eval_loss": 2.0,
        "tokens_per_second": 10,
        "tokens_seen": 7,
        "peak_memory_bytes": 2**31,
        "model_flops_per_second": 3e12,
        "eval_runtime": 4.0,
        "train_runtime": 9.0,
        "mfu": 0.4,
        "note": "text",
    }
    assert dict(tracked(logs)) == {
        "train/loss": 1.5,
        "eval/loss": 2.0,
        "speed/tokens_per_second": 10,
        "data/tokens_seen": 7,
        "memory/peak_gib": 2.0,
        "utilization/model_tflops_per_second": 3.0,
        "speed/eval_seconds": 4.0,
        "utilization/mfu": 0.4,
    }
    assert all("/" in tag for tags in CHARTS.values() for tag in tags)
