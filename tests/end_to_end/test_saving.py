"""Saving checkpoints in real runs: full disks, and saves in the background."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time

import pytest
import torch
import transformers

from sft.checkpointing.manifest import find_damage
from tests.support import messages
from tests.support.checkpoints import trained


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_checkpoints(short_run, monkeypatch):
    saved = torch.save

    def save(state, path, *args, **kwargs):
        if "checkpoint-4" in str(path) and str(path).endswith("optimizer.pt"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        return saved(state, path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        run = short_run()
    assert run.status == 2
    assert run.err.count("\n") == 1
    assert messages.CHECKPOINT_NOT_WRITTEN.format(step=4) in run.err
    assert [path.name for path in run.output_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    assert find_damage(run.output_dir / "checkpoint-2") == []
    again = short_run(resume_from_checkpoint="auto")
    assert again.status == 0, again.err
    assert [step for step, *_ in trained(again.output_dir)] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_in_the_saving_thread_ends_the_run_at_the_next_step(short_run, monkeypatch):
    from sft.training.checkpointed_trainer import CheckpointedTrainer
    from sft.training.stopping import StopCallback

    failed = threading.Event()
    publish, on_step_end = CheckpointedTrainer._publish, StopCallback.on_step_end

    def fail(trainer, staging, target, *rest):
        if target.name == "checkpoint-4":
            threading.Timer(0.1, failed.set).start()
            no_room()
        publish(trainer, staging, target, *rest)

    def wait_at_six(callback, args, state, control, **kwargs):
        if state.global_step == 6:
            assert failed.wait(60)
        on_step_end(callback, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointedTrainer, "_publish", fail)
        patched.setattr(StopCallback, "on_step_end", wait_at_six)
        run = short_run(max_steps=100, save_steps=4)
    assert run.status == 2
    assert messages.CHECKPOINT_NOT_WRITTEN.format(step=4) in run.err
    assert run.metrics[-1]["step"] <= 6  # not only at the next save, at step 8
    assert not list(run.output_dir.glob("checkpoint-*"))


@pytest.mark.parametrize("operation", ["weights", "rename", "metrics"])
def test_a_full_disk_is_reported_wherever_it_occurs(short_run, monkeypatch, operation):

    from sft.reporting.metrics_log import MetricsLog

    with monkeypatch.context() as patched:
        if operation == "weights":
            patched.setattr(transformers.PreTrainedModel, "save_pretrained", no_room)
        elif operation == "rename":
            patched.setattr(os, "rename", no_room)
        else:
            patched.setattr(MetricsLog, "write", no_room)
        run = short_run()
    assert run.status == 2
    assert run.err.count("\n") == 1
    assert "No space left on device" in run.err
    assert not list(run.output_dir.glob("checkpoint-*"))


def test_training_continues_while_a_checkpoint_is_published(short_run, monkeypatch):
    from sft.reporting.metrics_log import MetricsLog
    from sft.training import checkpointed_trainer

    third_step, waited = threading.Event(), []
    write, publish = MetricsLog.write, checkpointed_trainer.publish

    def write_and_signal(log, step, values):
        write(log, step, values)
        if step == 3:
            third_step.set()

    def publish_late(staging, target, entries):
        waited.append((target.name, third_step.wait(60)))
        publish(staging, target, entries)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    monkeypatch.setattr(checkpointed_trainer, "publish", publish_late)
    run = short_run(save_total_limit=1, logging_steps=1)
    assert run.status == 0, run.err
    assert waited == [("checkpoint-2", True), ("checkpoint-4", True), ("checkpoint-6", True)]
    assert [path.name for path in run.output_dir.glob("checkpoint-*")] == ["checkpoint-6"]
    assert find_damage(run.output_dir / "checkpoint-6") == []


def test_steps_during_a_background_save_do_not_change_the_checkpoint(short_run, tmp_path, monkeypatch):
    from sft.reporting.metrics_log import MetricsLog
    from sft.training import checkpointed_trainer
    from sft.training.checkpointed_trainer import CheckpointedTrainer

    with monkeypatch.context() as patched:
        patched.setattr(checkpointed_trainer, "memory_for_copy", lambda *_: 0)
        at_once = short_run(output_dir=tmp_path / "at-once")
    logged, waited = {step: threading.Event() for step in range(1, 7)}, []
    write, publish = MetricsLog.write, CheckpointedTrainer._publish

    def write_and_signal(log, step, values):
        write(log, step, values)
        logged[step].set()

    def publish_late(trainer, staging, target, to_write, *rest):
        step = int(target.name.rpartition("-")[2])
        names = {path.name for path in staging.iterdir()}
        waited.append((step, len(to_write), "optimizer.pt" in names, logged[min(step + 1, 6)].wait(60)))
        publish(trainer, staging, target, to_write, *rest)

    monkeypatch.setattr(MetricsLog, "write", write_and_signal)
    monkeypatch.setattr(CheckpointedTrainer, "_publish", publish_late)
    later = short_run(output_dir=tmp_path / "later")
    assert waited == [
        (2, 2, False, True),
        (4, 2, False, True),
        (6, 0, True, True),
    ]  # no step follows the last checkpoint
    for step in (2, 4, 6):
        files, expected = (
            {path.name: path.read_bytes() for path in (run.output_dir / f"checkpoint-{step}").iterdir()}
            for run in (later, at_once)
        )
        assert files.keys() == expected.keys()
        differ = {name for name in files if files[name] != expected[name]}
        assert differ <= {"manifest.json", "trainer_state.json"}  # which contain times and folders


def test_a_checkpoint_that_cannot_be_copied_is_written_and_logged(short_run, monkeypatch):
    from sft.training import checkpointed_trainer

    def fail(copier, state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(checkpointed_trainer.StateCopier, "copy", fail)
    run = short_run()
    assert run.status == 0, run.err
    assert messages.NOT_COPIED.format(error="DefaultCPUAllocator: can't allocate memory") in run.out
    for step in (2, 4, 6):
        assert find_damage(run.output_dir / f"checkpoint-{step}") == []


def test_a_picture_a_report_and_a_tracker_that_fail_do_not_end_the_run(short_run, monkeypatch):
    from sft.reporting.trackers.tensorboard import TensorBoardTracker
    from sft.training import results, run_report

    def fail(*_, **__):
        raise ValueError("unexpected\nin two lines")

    for owner, name in (
        (results, "read_metrics"),
        (results, "sample_lines"),
        (run_report, "find_facts"),
        (TensorBoardTracker, "finish"),
    ):
        monkeypatch.setattr(owner, name, fail)
    run = short_run(report_to="tensorboard", max_steps=2)
    assert run.status == 0, run.err
    assert "Traceback" not in run.out + run.err
    assert (run.output_dir / "config.json").is_file()
    summary = json.loads((run.output_dir / "run_summary.json").read_text())
    assert summary["status"] == "completed"
    assert "unexpected" in summary["trackers"]["tensorboard"]
    for what in ("training_curves.png", "report.html", "the result"):
        assert f"{what} {messages.CANNOT_BE_WRITTEN}" in run.out


def test_a_summary_that_cannot_be_written_ends_a_run_that_has_saved_its_model(short_run, monkeypatch):
    from sft.training import results

    with monkeypatch.context() as patched:
        patched.setattr(results, "write_json", no_room)
        run = short_run(max_steps=2)
    assert run.status == results.WITHOUT_SUMMARY_STATUS
    assert f"run_summary.json {messages.CANNOT_BE_WRITTEN}" in run.out
    for name in ("config.json", "report.html", "training_curves.png"):
        assert (run.output_dir / name).is_file()


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [("rename", 0, "was renamed to"), ("replace", 2, "is no longer the folder in which this run began")],
)
def test_an_output_folder_that_is_renamed_loses_nothing(short_run, monkeypatch, change, status, line):
    from sft.reporting.metrics_log import MetricsLog

    write, changed = MetricsLog.write, []

    def change_after_three_steps(log, step, values):
        write(log, step, values)
        output = log.path.parent
        if step == 3 and not changed:
            while not (output / "checkpoint-2").exists():  # written in the background
                time.sleep(0.01)
            output.rename(output.with_name("renamed"))
            changed.append(output)
            if change == "replace":
                output.mkdir()
                (output / "notes.txt").write_text("mine")

    monkeypatch.setattr(MetricsLog, "write", change_after_three_steps)
    run = short_run(logging_steps=1)
    renamed = run.output_dir.with_name("renamed")
    assert run.status == status, run.err
    assert line in run.out + run.err
    assert "Traceback" not in run.out + run.err
    assert find_damage(renamed / "checkpoint-2") == []
    assert str(renamed / "checkpoint-2") in run.out + run.err
    if change == "replace":
        assert run.err.count("\n") == 1
        assert [path.name for path in run.output_dir.iterdir()] == ["notes.txt"]
        return
    assert find_damage(run.output_dir / "checkpoint-6") == []
    for name in ("config.json", "run_summary.json", "report.html", "resolved_config.yaml"):
        assert (run.output_dir / name).is_file()
    events = [event["step"] for event in run.metrics if "loss" in event]
    assert events == [4, 5, 6]
    assert len((renamed / "metrics.jsonl").read_text().splitlines()) >= 3


def test_a_run_with_odd_characters_in_all_paths_keeps_its_files(short_run, model_folder, question_file, tmp_path):
    name = "[x] $a$ 'q\" {b} %s\n\\ é*?"
    folder = tmp_path / name
    shutil.copytree(model_folder("llama"), folder / name)
    shutil.copy(question_file, folder / f"{name}.jsonl")
    bad = os.fsdecode(b"\xff")
    shutil.copy(question_file, folder / f"{bad}.jsonl")
    settings = {
        "model_name_or_path": folder / name,
        "train_file": folder / f"{name}.jsonl",
        "validation_file": folder / f"{bad}.jsonl",
        "data_cache_dir": folder / bad,
        "output_dir": folder / "out" / name,
        "run_name": name,
        "report_to": "tensorboard",
        "logging_dir": folder / f"logs {name}",
        "max_steps": 2,
        "max_leakage_share": 1,
    }
    run = short_run("--log_dir", str(folder / f"log {bad}"), draws_curves=True, **settings)
    assert run.status == 0, run.err
    assert "Traceback" not in run.out + run.err
    assert messages.CANNOT_BE_WRITTEN not in run.out + run.err
    assert messages.RUN_CONTINUES not in run.out + run.err
    for each in ("config.json", "run_summary.json", "report.html", "checkpoint-2/manifest.json"):
        assert (run.output_dir / each).is_file()
    assert (folder / f"log {bad}" / "rank-0.log").is_file()
    again = short_run(
        "--resume_from_checkpoint=auto",
        f"--config_file={run.output_dir / 'resolved_config.yaml'}",
        **settings | {"max_steps": 3},
    )
    assert again.status == 0, again.err
