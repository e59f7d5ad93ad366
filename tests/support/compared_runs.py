"""Folders of runs that are compared."""

from __future__ import annotations

import json

import yaml

from tests.support.report_records import GIB, evaluation, falling, in_order

SUMMARY = {
    "status": "completed",
    "device": "cpu",
    "bad_steps": 0,
    "versions": {"torch": "2.13.0"},
    "eval_after": {"loss": 1.0},
    "batch_plan": {"world_size": 1, "global_batch_size": 8},
    "train": {
        "steps": 100,
        "seconds": 50.0,
        "examples_per_second": 16.0,
        "tokens_per_second": 1000.0,
        "peak_memory_bytes": 2 * GIB,
    },
    "data": {
        "train": {"rows_used": 400, "tokens": 8000, "supervised_tokens": 2000},
        "validation": {"rows_used": 40, "tokens": 800, "supervised_tokens": 200},
        "digests": {"train": "a" * 64, "validation": "b" * 64},
    },
}

SETTINGS = {"learning_rate": 0.001, "output_dir": "x", "lora_config": {"r": 8, "lora_alpha": 16.0}}


def write_run(folder, *, summary=SUMMARY, settings=SETTINGS, best=1.0):
    folder.mkdir(parents=True)
    if summary is not None:
        (folder / "run_summary.json").write_text(json.dumps(summary))
    if settings is not None:
        (folder / "resolved_config.yaml").write_text(yaml.safe_dump({**settings, "output_dir": str(folder)}))
    events = in_order(falling(), [evaluation(0, 3.0), evaluation(50, best), evaluation(100, best + 0.1)])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(folder)
