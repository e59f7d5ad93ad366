"""A tracker that fails during a run: one log line, and the run continues."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.support import forked, messages
from tests.support.injected import TrackersDie


def test_failing_trackers_are_logged_once_and_the_run_continues(model_folder, question_file, tmp_path, monkeypatch):
    settings = {
        "model_name_or_path": model_folder("llama"),
        "train_file": question_file,
        "max_seq_length": 64,
        "max_steps": 5,
        "logging_steps": 1,
        "sample_prompts": "[]",
        "save_strategy": "no",
        "bf16": False,
        "use_cpu": True,
        "report_to": "[tensorboard, wandb]",
        "output_dir": tmp_path / "out",
    }
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = [f"--{key}={value}" for key, value in settings.items()]
    done = forked.run(tmp_path / "terminal", *options, fault=TrackersDie())
    assert (done.status, done.err) == (0, ""), done.err
    summary = json.loads((tmp_path / "out" / "run_summary.json").read_text())
    for name in ("tensorboard", "wandb"):
        (line,) = [line for line in done.out.splitlines() if line.startswith(messages.TRACKER_FAILED.format(name=name))]
        assert messages.RUN_CONTINUES in line
        assert summary["trackers"][name].startswith("at step ")
    events = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if "loss" in event] == [1, 2, 3, 4, 5]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_tracker_that_cannot_start_is_switched_off(run_sft, tmp_path, monkeypatch):
    import wandb

    wandb.teardown()  # what an earlier run in this process has set up would begin all the same
    monkeypatch.setenv("WANDB_MODE", "nonsense")  # wandb refuses it when it begins
    monkeypatch.setenv("HOME", str(tmp_path))
    run = run_sft(report_to="[wandb]", max_steps=2, sample_prompts="[]")
    assert run.status == 0, run.err
    assert run.out.count(messages.TRACKER_FAILED.format(name="wandb")) == 1
    assert "nonsense" in run.summary["trackers"]["wandb"]


@pytest.mark.parametrize(
    "name",
    [
        "a password=Xy7-s3cr3t",
        "https://me:Xy7-s3cr3t@host",
        "me:Xy7-s3cr3t@host:data",
        "of Xy7-s3cr3t",
        "'Xy7-s3cr3t'",
    ],
)
def test_a_secret_in_the_run_name_is_in_no_tracker_and_no_record(run_sft, tmp_path, monkeypatch, name):
    for variable in [variable for variable in os.environ if variable.startswith("WANDB")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_API_KEY", "Xy7-s3cr3t")
    more = [f"--run_name={name}", "--hub_token", "Xy7-s3cr3t"]
    monkeypatch.setattr(sys, "argv", ["sft_main.py", *more])  # which trackers record
    is_whole = name.startswith("of")
    trackers = "[tensorboard, wandb]" if is_whole else "none"
    run = run_sft(*more, report_to=trackers, max_steps=1, sample_prompts="[]", save_steps=1)
    assert run.status == 0, run.err
    assert "run_name: trackers and records show it" in run.out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"Xy7-s3cr3t" in path.read_bytes()]
    assert any(path.suffix == ".wandb" for path in files) == is_whole
    assert sys.argv == ["sft_main.py", *more]
