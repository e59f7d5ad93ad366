"""Runs on weighted rows: what is logged and recorded, and that a resume changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import messages
from tests.support.checkpoints import as_if_killed

BOTH = ("loss", "loss_unweighted", "perplexity", "token_accuracy")


@pytest.fixture
def weighted_file(question_file, tmp_path):
    rows = [json.loads(line) for line in Path(question_file).read_text().splitlines()]
    path = tmp_path / "weighted.jsonl"
    path.write_text("".join(json.dumps({**row, "weight": 1 + index % 3}) + "\n" for index, row in enumerate(rows)))
    return str(path)


def logged(folder, names=BOTH):
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(event.get(name) for name in names) for event in events if "loss" in event or "eval_loss" in event]


def test_a_weighted_run_logs_both_losses(short_run, weighted_file):
    run = short_run(train_file=weighted_file, validation_split=0.3, prompt_loss_weight=0.1)
    assert run.status == 0, run.err
    losses = [event for event in run.metrics if "loss" in event]
    assert all(event["loss"] != event["loss_unweighted"] for event in losses)
    evaluations = [event for event in run.metrics if "eval_loss" in event]
    assert all(event["eval_loss"] != event["eval_loss_unweighted"] for event in evaluations)
    summary = json.loads((run.output_dir / "run_summary.json").read_text())
    mean = sum(event["loss_unweighted"] for event in losses) / len(losses)
    assert summary["train"]["loss_unweighted"] == pytest.approx(mean, rel=1e-6)
    assert summary["eval_after"]["loss_unweighted"] == evaluations[-1]["eval_loss_unweighted"]
    assert summary["data"]["train"]["weights"]["highest"] == 3
    assert summary["data"]["train"]["weights"]["prompt_tokens"] > 0
    assert "unweighted" in run.out


def test_a_run_without_weights_logs_and_records_nothing_of_them(short_run):
    run = short_run(validation_split=0.3)
    assert "unweighted" not in run.out
    for path in run.output_dir.rglob("*.json*"):
        assert "weighted" not in path.read_text(errors="replace"), path
    report = (run.output_dir / "report.html").read_text()
    assert "unweighted" not in report


@pytest.mark.parametrize("streaming", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one(short_run, weighted_file, tmp_path, streaming):
    settings = {"train_file": weighted_file, "logging_steps": 4, "streaming": streaming}
    settings |= {"prompt_loss_weight": 0.5, "packing": not streaming}
    uninterrupted = short_run(**settings)
    assert uninterrupted.status == 0, uninterrupted.err
    folder = as_if_killed(uninterrupted.output_dir, tmp_path / "killed", 2)
    again = short_run(**settings, resume_from_checkpoint="auto", output_dir=folder)
    assert again.status == 0, again.err
    assert logged(folder) == logged(uninterrupted.output_dir)
    assert all(plain is not None for _, plain, *_ in logged(folder))
    summaries = [json.loads((path / "run_summary.json").read_text())["train"] for path in (folder, again.output_dir)]
    assert summaries[0]["loss_unweighted"] == summaries[1]["loss_unweighted"]


def test_a_resume_with_another_weight_of_prompts_is_refused(short_run, weighted_file):
    first = short_run(train_file=weighted_file, max_steps=2)
    again = short_run(
        train_file=weighted_file, prompt_loss_weight=0.5, resume_from_checkpoint="auto", output_dir=first.output_dir
    )
    assert again.status == 2
    assert messages.LOSS_WOULD_DIFFER in again.err


def test_a_bad_weight_ends_the_run_with_one_line(short_run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "a", "weight": -2}) + "\n")
    run = short_run(train_file=str(path))
    assert run.status == 2
    assert f"{path}:1: {messages.BAD_WEIGHT}" in run.err


def test_a_dry_run_shows_weights(short_run, weighted_file):
    run = short_run("--dry_run", train_file=weighted_file, prompt_loss_weight=0.25)
    assert run.status == 0, run.err
    assert messages.WEIGHTED_ROWS in run.out
    assert "[weight 0.25]" in run.out
    document = json.loads((run.output_dir / "preflight.json").read_text())
    assert document["train"]["weights"]["lowest"] == 1
