"""Sample prompts: answered at each evaluation, logged once per step, without any effect on the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft.reporting.samples_log import SamplesLog

# Dropout draws random numbers in every step: one more or less drawn elsewhere would show.
SETTINGS: dict[str, Any] = {
    "validation_split": 0.25,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 2,
    "eval_steps": 4,
    "save_steps": 12,
    "save_total_limit": "null",
    "lora_config.r": 4,
    "lora_config.lora_dropout": 0.2,
    "gradient_checkpointing": True,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_samples_are_logged_by_step_and_change_no_run_and_no_resumed_run(run_sft, tmp_path):
    asked = run_sft(output_dir=str(tmp_path / "asked"), **SETTINGS)
    assert asked.status == 0, asked.err
    silent = run_sft(output_dir=str(tmp_path / "silent"), sample_prompts="[]", **SETTINGS)
    assert_same_weights(asked.output_dir, silent.output_dir)
    losses = [[e["loss"] for e in run.metrics if "loss" in e] for run in (asked, silent)]
    assert losses[0] == losses[1]
    assert not (silent.output_dir / "samples.jsonl").exists()

    lines = lines_of(asked.output_dir)
    assert [line["step"] for line in lines] == [step for step in (0, 4, 8, 12, 16, 18) for _ in range(3)]
    assert {tuple(line) for line in lines} == {("step", "prompt", "answer", "ended", "reference")}
    assert all(line["reference"] for line in lines)
    events = {e["step"]: e["eval_samples_ended"] for e in asked.metrics if "eval_samples_ended" in e}
    for step, share in events.items():
        assert share == pytest.approx(sum(line["ended"] for line in lines if line["step"] == step) / 3)
    assert list(events) == [0, 4, 8, 12, 16, 18]
    samples = asked.summary["samples"]
    assert [sample["after"] for sample in samples] == [line["answer"] for line in lines[-3:]]
    assert [sample["before"] for sample in samples] == [line["answer"] for line in lines[:3]]
    assert asked.summary["samples_ended"]["after"] == sum(line["ended"] for line in lines[-3:])

    expected, checkpoint = lines, asked.output_dir / "checkpoint-12"
    saved = json.loads((checkpoint / "manifest.json").read_text())["samples_before"]
    assert len(saved) == 3
    elsewhere = run_sft(output_dir=str(tmp_path / "elsewhere"), resume_from_checkpoint=str(checkpoint), **SETTINGS)
    assert elsewhere.status == 0, elsewhere.err
    assert lines_of(elsewhere.output_dir) == [line for line in expected if line["step"] in (0, 16, 18)]
    here = run_sft(output_dir=str(tmp_path / "asked"), resume_from_checkpoint=str(checkpoint), **SETTINGS)
    assert here.status == 0, here.err
    assert lines_of(here.output_dir) == expected
    assert here.summary["samples"] == elsewhere.summary["samples"]
    assert_same_weights(here.output_dir, elsewhere.output_dir)
    assert_same_weights(here.output_dir, silent.output_dir)


def test_samples_only_before_and_after_training_on_request(run_sft):
    run = run_sft(validation_split=0.25, eval_steps=2, sample_at_evaluations=False, sample_prompts="[Hello.]")
    assert [(line["step"], line["prompt"]) for line in lines_of(run.output_dir)] == [(0, "Hello."), (5, "Hello.")]
    assert lines_of(run.output_dir)[0]["reference"] is None


def test_samples_after_training_come_from_the_best_model_if_it_is_loaded(run_sft):
    # By the greatest loss, the best is never the last.
    run = run_sft(
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        validation_split=0.25,
    )
    assert run.status == 0, run.err
    evaluations = {e["step"]: e["eval_loss"] for e in run.metrics if "eval_loss" in e and 0 < e["step"] < 5}
    best = max(evaluations, key=evaluations.get)
    lines = lines_of(run.output_dir)
    assert [s["after"] for s in run.summary["samples"]] == [e["answer"] for e in lines if e["step"] == best]
    steps = [line["step"] for line in lines]
    assert all(steps.count(step) == 3 for step in steps)


def test_samples_log_keeps_each_step_once(tmp_path):
    def line(step: int, prompt: str = "p") -> dict[str, Any]:
        return {"step": step, "prompt": prompt, "answer": "\ud800é", "ended": True, "reference": None}

    path = tmp_path / "samples.jsonl"
    log = SamplesLog(path)
    assert not path.exists()
    for step in (0, 2, 4):
        log.write([line(step)])
    again = SamplesLog(path, resume_step=2)
    again.write([line(0), line(0, "another")])
    again.write([line(4)])
    found = lines_of(tmp_path)
    assert [(each["step"], each["prompt"]) for each in found] == [(0, "p"), (2, "p"), (0, "another"), (4, "p")]
    assert "é" in path.read_text(encoding="utf-8")
    SamplesLog(path)
    assert path.read_text() == ""
