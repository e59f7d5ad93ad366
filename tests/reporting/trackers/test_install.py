"""Trackers, read back from their own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {"validation_split": 0.25, "eval_steps": 2, "save_steps": 3, "sample_prompts": "[Say hello.]"}


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def text_of(events: Any, tag: str) -> dict[int, str]:
    return {e.step: e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")}


def records_of(folder: Path) -> list[Any]:
    """All records of a wandb file: blocks of 32 KiB with chunks of a LevelDB log, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    data, place, records, whole = path.read_bytes(), 7, [], b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete chunk, or the last one of several
            records.append(Record.FromString(whole))
            whole = b""
    return records


def test_trackers_receive_all_metrics(run_sft, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    run = run_sft(report_to="[tensorboard, wandb]", draws_curves=True, **SETTINGS)
    assert run.status == 0, run.err
    steps = {name: [(e["step"], e[name]) for e in run.metrics if name in e] for name in ("loss", "eval_loss")}

    events = events_of(run.output_dir / "logs")
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/perplexity",
        "train/grad_norm",
        "train/learning_rate",
        "eval/loss",
        "eval/perplexity",
        "eval/token_accuracy",
        "eval/sequence_accuracy",
        "eval/samples_ended",
        "speed/supervised_tokens_per_second",
        "speed/tokens_per_second",
        "speed/computed_tokens_per_second",
        "speed/examples_per_second",
        "utilization/model_tflops_per_second",
        "utilization/cpu",
        "memory/allocated_gib",
        "memory/peak_gib",
        "data/tokens_seen",
        "data/supervised_tokens_seen",
        "data/rows_seen",
    } <= scalars
    assert "utilization/mfu" not in scalars, "a CPU has no peak to be a share of"
    for name, tag in (("loss", "train/loss"), ("eval_loss", "eval/loss")):
        assert [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)] == steps[name]
    topics = ("configuration", "data", "model", "batch_plan", "environment", "result")
    shown = {topic: next(iter(text_of(events, f"run/{topic}").values())) for topic in topics}
    assert "learning_rate: 0.01" in shown["configuration"]
    assert "| train.rows_used | 18 |" in shown["data"]
    assert "version_torch" in shown["environment"]
    assert "| status | completed |" in shown["result"]
    samples = [json.loads(line) for line in (run.output_dir / "samples.jsonl").read_text().splitlines()]
    said = text_of(events, "samples/1")
    assert list(said) == [line["step"] for line in samples] == [0, 2, 4, 5]
    assert "Say hello." in said[0]
    assert events.Images("run/curves")[0].width > 500

    records = records_of(run.output_dir)
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(e["train/global_step"], e["train/loss"]) for e in history if "train/loss" in e] == steps["loss"]
    assert scalars <= {name for event in history for name in event}
    configuration = {
        item.key: item.value_json for record in records for item in record.config.update if item.key == "sft"
    }
    assert json.loads(configuration["sft"])["data"]["train"]["rows_used"] == 18
    (media,) = (run.output_dir / "wandb").glob("offline-run-*/files/media")
    tables = [json.loads(path.read_text()) for path in media.glob("table/samples/*.table.json")]
    rows = sorted(row for table in tables for row in table["data"])
    assert rows == [[line[name] for name in tables[0]["columns"]] for line in samples]
    assert list(media.glob("images/run/curves*.png"))


def test_trackers_of_a_resumed_run_show_no_step_twice(run_sft):
    first = run_sft(report_to="tensorboard", **SETTINGS)
    whole = {e["step"]: e for e in first.metrics if "loss" in e}
    again = run_sft(report_to="tensorboard", resume_from_checkpoint=str(first.output_dir / "checkpoint-3"), **SETTINGS)
    assert again.status == 0, again.err
    events = events_of(again.output_dir / "logs")
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [e.step for e in events.Scalars("eval/samples_ended")] == [0, 2, 4, 5]
    for name in ("tokens_seen", "rows_seen", "supervised_tokens_seen"):
        assert [e[name] for e in again.metrics if "loss" in e] == [e[name] for e in whole.values()]
